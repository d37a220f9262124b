import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import live_ring, live_vm, page

PARTS = ("bench", "live", "vm")
# Neither a marker nor what reading a text file makes another line's end.
TEXT = st.text(st.characters(exclude_characters="<\r", exclude_categories=["Cs"]))


def marked(name: str, text: str) -> str:
    return f"<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->"


@given(
    around=st.lists(TEXT, min_size=4, max_size=4),
    old=st.lists(TEXT, min_size=3, max_size=3),
    new=TEXT,
    chosen=st.sampled_from(PARTS),
)
def test_writing_replaces_its_part_only(
    tmp_path_factory: pytest.TempPathFactory,
    around: list[str],
    old: list[str],
    new: str,
    chosen: str,
) -> None:
    def whole(texts: dict[str, str]) -> str:
        parts = [marked(name, text) for name, text in texts.items()]
        return around[0] + "".join(a + b for a, b in zip(parts, around[1:], strict=True))

    before = dict(zip(PARTS, old, strict=True))
    file = tmp_path_factory.getbasetemp() / "page.md"
    file.write_text(whole(before), encoding="utf-8")
    page.write_part(chosen, new, file)
    assert file.read_text(encoding="utf-8") == whole(before | {chosen: new})


@pytest.mark.parametrize(
    "text", ["", marked("live", ""), "<!-- vm: end --><!-- vm: begin -->", marked("vm", "") * 2]
)
def test_a_page_without_the_part_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "page.md"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape("<!-- vm: begin -->")):
        page.write_part("vm", "new", file)
    assert file.read_text(encoding="utf-8") == text


def test_our_page_has_every_part(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_bytes(page.PAGE.read_bytes())
    for name in PARTS:
        page.write_part(name, f"new {name}", file)
    assert all(marked(name, f"new {name}") in file.read_text(encoding="utf-8") for name in PARTS)


@pytest.mark.parametrize("heads", [live_ring.HEADS, live_vm.HEADS])
def test_a_table_has_as_many_columns_in_every_line(heads: tuple[str, ...]) -> None:
    lines = page.table(heads, [range(len(heads))] * 2).splitlines()
    assert {line.count("|") for line in lines} == {len(heads) + 1}


def test_the_vm_table_tells_what_capturing_costs() -> None:
    def sample(way: str, rx: float, cpu: float) -> dict[str, object]:
        taken = {"captured": 1000, "dropped": 10, "cpu": cpu, "whole_cpu": cpu, "memory": 30.0}
        return {"way": way, "received": 1 << 20, "rx": rx, "tx": rx, **taken}

    samples = [sample("uncaptured", 2.0, 0), sample("tcpdump", 1.0, 0.5), sample("vsockdump", 1, 1)]
    lines = [dict(zip(live_vm.HEADS, row, strict=True)) for row in live_vm.rows("bulk", samples)]
    assert [line["captured by"] for line in lines] == [sample["way"] for sample in samples]
    assert lines[2]["of uncaptured"] == "0.50"
    assert lines[2]["dropped"] == 10
    assert lines[2]["against tcpdump (least - most)"] == "2.00 (2.00 - 2.00)"
    assert lines[2]["CPU us/packet"] == "1000.0"
