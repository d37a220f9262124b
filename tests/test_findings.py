from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from findings_scenes import RAISES

from vsockdump.cli import main
from vsockdump.tracking.findings import BITS, CODES, Finding, Severity

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "findings.md").read_text(encoding="utf-8")
SECTIONS = {
    match["code"]: (match["severity"], match["body"])
    for match in re.finditer(
        r"^### `(?P<code>[a-z-]+)` \((?P<severity>\w+)\)\n(?P<body>.*?)(?=^##|\Z)",
        PAGE,
        re.MULTILINE | re.DOTALL,
    )
}
PARTS = ("**It means**", "**Likely causes.**", "**What to do.**")


def anchor(heading: str) -> str:
    """The name that a heading gets on the web."""
    return re.sub(r"[^a-z -]", "", heading.lower()).strip().replace(" ", "-")


def test_the_page_has_every_code_with_its_severity() -> None:
    told = {code: severity for code, (severity, _) in SECTIONS.items()}
    assert told == {code: severity.label for code, severity in CODES.items()}


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_explained_in_three_parts(code: str) -> None:
    _, body = SECTIONS[code]
    at = [body.index(part) for part in PARTS]
    assert at == sorted(at)
    assert all(body.count(part) == 1 for part in PARTS)


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {anchor(line.lstrip("#")) for line in PAGE.splitlines() if line.startswith("#")}
    links = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert links
    assert links <= headings


def test_links_to_other_pages_lead_somewhere() -> None:
    for page in re.findall(r"\]\(([\w-]+\.md)\)", PAGE):
        assert (DOCS / page).exists()


def test_the_example_is_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = re.findall(r"```console\n\$ vsockdump (.*?)\n(.*?)```", PAGE, re.DOTALL)
    command, expected = shown
    monkeypatch.chdir(DOCS.parent)
    with pytest.raises(SystemExit):
        main(command.split())
    assert capsys.readouterr().out == expected


def test_every_code_has_a_bit_of_its_own() -> None:
    assert BITS.keys() == CODES.keys()
    assert sorted(BITS.values()) == [1 << place for place in range(len(CODES))]
    assert max(BITS.values()) < 1 << 64


def test_the_json_schema_knows_every_code_and_severity() -> None:
    schema = json.loads((DOCS / "finding.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"]["code"]["enum"] == list(CODES)
    assert schema["properties"]["severity"]["enum"] == [s.label for s in Severity]


def test_a_finding_is_as_bad_as_its_code() -> None:
    for code, severity in CODES.items():
        assert Finding(code=code, message="").severity is severity
    assert Severity.INFO < Severity.WARNING < Severity.ERROR


ELSEWHERE = {
    # Codes whose smallest traffic is no scene of two sides, by the test that raises them.
    "refused": "test_detect.test_who_refuses_is_named_and_who_gave_up",
    "no-answer": "test_epilogue.test_a_request_that_nobody_answered",
    "malformed": "test_detect.test_packets_that_are_not_decoded_are_told_of_once",
    "truncated-headers": "test_detect.test_packets_that_are_not_decoded_are_told_of_once",
    "unsupported": "test_detect.test_packets_that_are_not_decoded_are_told_of_once",
    "kernel-tap-bug": "test_detect.test_a_kernel_s_mistakes_are_told_of_once_each",
    "capture-drops": "test_epilogue.test_packets_that_the_capture_lost",
    "connections-left": "test_epilogue.test_connections_that_left",
    "packets-given-up": "test_epilogue.test_packets_that_were_given_up",
}


def test_every_code_is_raised_by_a_test() -> None:
    assert {code for code, _ in RAISES} | ELSEWHERE.keys() == CODES.keys()
    for name in ELSEWHERE.values():
        module, _, test = name.partition(".")
        assert f"\ndef {test}(" in (Path(__file__).parent / f"{module}.py").read_text("utf-8")
