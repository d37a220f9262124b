"""The command line: options as tcpdump users type them, statuses, one line for each failure."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command import ECHO, VSOCKDUMP, call, environment, run

from vsockdump import captures
from vsockdump.cli import SUBCOMMANDS
from vsockdump.cli.command import LINK_TYPE
from vsockdump.cli.device import device
from vsockdump.device import NONE

DEVICE = tuple(device.commands)

PACKETS = 25
"""Packets of the capture that most tests read; captures/README.md tells so too."""


def test_the_module_and_the_script_are_the_same_command() -> None:
    script = Path(VSOCKDUMP[0]).with_name("vsockdump")
    assert script.exists()
    printed = subprocess.run([script, "--version"], capture_output=True, check=True).stdout
    assert printed == run("--version").out
    assert re.fullmatch(rb"vsockdump \d+\.\d+\.\d+\S*\n", printed)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("-ttnr {}", "-t -t -n -r {}"),
        ("-nnvvXr {}", "-n -n -v -v -X -r {}"),
        ("-c 5 -r {}", "-r {} -c5"),
        ("-r{} -# -q", "--number -q -r {}"),
        ("-nnvvXs 0 -r {}", "-n -n -v -v -X --snapshot-length=0 -r {}"),
        ("-r {} -tttt --nano -e port 20000", "-e -ttttr {} --nano -- port 20000"),
        ("port 20000 -r {}", "-r {} port 20000"),
        ("-r {} port 20000 and op rw", "-r {} 'port 20000 and op rw'"),
        ("-r {} --color op rw", "-r {} --color=always op rw"),
        ("-r {} --count op rw", "--count -r {} op rw"),
        ("-pKr {}", "-r {}"),
        ("-r {} --time-stamp-precision=micro", "-r {} --micro"),
        ("-tttr {} --time-stamp-precision nano", "-ttt --nano -r {}"),
        ("conns -r {}", "conns {}"),
        ("check -r {} op rw", "check {} op rw"),
        ("credit op rw -r {}", "credit {} op rw"),
    ],
)
def test_options_are_typed_as_with_tcpdump(
    capfdbinary: pytest.CaptureFixture[bytes], typed: str, meant: str
) -> None:
    results = [
        call(capfdbinary, *shlex.split(line.replace("{}", shlex.quote(ECHO))))
        for line in (typed, meant)
    ]
    assert results[0] == results[1]
    assert results[0][0] == 0
    assert results[0][1]


def test_count_prints_a_count_alone(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert call(capfdbinary, "--count", "-r", ECHO) == (0, b"%d packets\n" % PACKETS, "")
    status, out, _ = call(capfdbinary, "--count", "-c1", "-r", ECHO)
    assert (status, out) == (0, b"1 packet\n")


def test_a_limit_counts_packets_that_pass(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    _, out, _ = call(capfdbinary, "-c", "3", "-r", ECHO, "op", "rw")
    assert out.count(b" RW, ") == out.count(b"\n") == 3


def test_what_is_read_is_told_of_on_standard_error() -> None:
    ran = run("-r", ECHO)
    assert ran.err == f"reading from file {ECHO}\n"
    assert len(ran.lines) == PACKETS
    assert run("-r", "-", stdin=Path(ECHO).read_bytes()).err == "reading from standard input\n"


def test_no_device_is_listed_here() -> None:
    ran = run("-D")
    assert (ran.status, ran.out, ran.err) == (0, b"", f"{NONE}\n")
    assert run("device", "list") == ran


@pytest.mark.parametrize("device", ["lo", "nosuchdev0"])
def test_a_device_of_another_kind_is_refused(device: str) -> None:
    ran = run("-i", device)
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.startswith(f"vsockdump: {device}")
    assert ran.err.count("\n") == 1


FAILURES = {
    "missing file": (["-r", "{tmp}/none.pcap"], 1, "none.pcap: No such file or directory"),
    "directory": (["-r", "{tmp}"], 1, "Is a directory"),
    "not a capture": (["-r", "{tmp}/text"], 1, "text: at byte 0: neither pcap nor pcapng"),
    "empty file": (["-r", "{tmp}/empty"], 1, "empty: at byte 0: the file is empty"),
    "unknown option": (["--bogus"], 2, "--bogus"),
    "unknown letter": (["-nj"], 2, "-j"),
    "missing value": (["-r"], 2, "-r"),
    "not a number": (["-c", "many", "-r", ECHO], 2, "'many'"),
    "too small": (["-c", "0", "-r", ECHO], 2, "from 1 up, had '0'"),
    "too large": (["-c", "9" * 40, "-r", ECHO], 2, "is too large"),
    "negative": (["-s", "-1", "-r", ECHO], 2, "from 0 up, had '-1'"),
    "not a color": (["--color=red", "-r", ECHO], 2, "'red'"),
    "two sources": (["-r", ECHO, "-i", "lo"], 2, "-r and -i exclude each other"),
    "two files": (["-r", ECHO, "-r", "other"], 2, "-r is given 2 times: name one FILE"),
    "two files to follow": (["credit", "-r", ECHO, "-r", ECHO], 2, "-r is given 2 times"),
    "a file named twice": (["conns", "-r", ECHO, "{tmp}/text"], 2, "/text: name one"),
    "a file for a filter": (["check", ECHO, "{tmp}/text"], 2, "two files, "),
    "create for a file to follow": (["check", ECHO, "--create"], 2, "--create is for a device"),
    "device and file to follow": (["conns", "-i", "lo", "-r", ECHO], 2, "-r and -i exclude"),
    "direction": (["-Q", "in", "-r", ECHO], 2, "-Q in: the tap does not tell the direction"),
    "another precision": (["-r", ECHO, "--time-stamp-precision=pico"], 2, "'pico'"),
    "two filters": (["-r", ECHO, "-F", ECHO, "op", "rw"], 2, "-F and a filter"),
    "bad filter": (["-r", ECHO, "prot 5"], 2, "prot"),
    "missing filter file": (["-r", ECHO, "-F", "{tmp}/none"], 1, "none: No such file"),
    "filter is not text": (["-r", ECHO, "-F", "{tmp}/bytes"], 1, "bytes: not text"),
    "no filter to print": (["-d"], 2, "-d needs a filter"),
    "comment without file": (["-r", ECHO, "--capture-comment", "x"], 2, "needs -w"),
    "rotation without file": (["-r", ECHO, "-C", "1"], 2, "-C, -G and -W need -w"),
    "not a size": (["-r", ECHO, "-w", "{tmp}/out", "-C", "1x"], 1, "not a file size: '1x'"),
    "create for a file": (["-r", ECHO, "--create"], 2, "--create is for a device"),
    "both to stdout": (["-r", ECHO, "-w", "-", "--print"], 2, "--print and --count"),
    "no such folder": (["-r", ECHO, "-w", "{tmp}/none/out"], 1, "none/out: No such file"),
    "comment in pcap": (
        ["-r", ECHO, "-w", "{tmp}/out", "--format", "pcap", "--capture-comment", "x"],
        1,
        "a comment needs pcapng",
    ),
    "its own input": (["-r", "{tmp}/copy", "-w", "{tmp}/copy"], 1, "is being read"),
    "conns of nothing": (["conns"], 2, "name a FILE"),
    "unknown device command": (["device", "burn"], 2, "burn"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_is_a_line_and_a_status(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, name: str
) -> None:
    (tmp_path / "text").write_text("neither\n")
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "copy").write_bytes(Path(ECHO).read_bytes())
    typed, wanted, says = FAILURES[name]
    status, out, err = call(capfdbinary, *(word.replace("{tmp}", str(tmp_path)) for word in typed))
    assert (status, out) == (wanted, b"")
    complaint = [line for line in err.splitlines() if not line.startswith("reading from ")]
    assert complaint[0].startswith("vsockdump: ")
    assert says in complaint[0]
    if wanted == 2 and name != "bad filter":
        assert re.fullmatch(r"Try 'vsockdump( \w+)* --help' for help\.", complaint[1])
    assert len(complaint) == {1: 1, 2: 2}[wanted] or name == "bad filter"
    assert (tmp_path / "copy").read_bytes() == Path(ECHO).read_bytes()


def test_a_bad_filter_shows_the_place(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    words = ["port", "20000", "and", "nonsense"]
    status, _, err = call(capfdbinary, "-r", ECHO, *words)
    _, typed, caret = err.splitlines()
    assert status == 2
    assert typed.strip() == " ".join(words)
    assert typed[caret.index("^") :] == words[-1]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("chek {}", "if a command was meant: vsockdump check"),
        ("conn {}", "if a command was meant: vsockdump conns"),
        ("doctor", "if a command was meant: vsockdump device doctor"),
        ("help", "for help: vsockdump --help"),
        ("{}", "{} is a file: to read it, write -r {}"),
        ("-nn {} port 5", "{} is a file: to read it, write -r {}"),
        ("prot 5", ""),
        ("-r {} chek", ""),
        (f"'{'x' * 5000} {{}}'", ""),
    ],
)
def test_what_was_taken_for_a_filter_may_be_a_command_or_a_file(
    capfdbinary: pytest.CaptureFixture[bytes], typed: str, says: str
) -> None:
    status, out, err = call(capfdbinary, *shlex.split(typed.replace("{}", shlex.quote(ECHO))))
    assert (status, out) == (2, b"")
    *complaint, last = err.splitlines()
    assert complaint[0].startswith("vsockdump: ")
    if says:
        assert last == says.replace("{}", ECHO)
        last = complaint[-1]
    assert last.strip().strip("^") == ""


def test_there_is_one_link_type(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    status, out, err = call(capfdbinary, "-L")
    assert (status, out, err) == (0, f"Data link types:\n  {LINK_TYPE}\n".encode(), "")


@pytest.mark.parametrize("name", ["", *SUBCOMMANDS, *(f"device {sub}" for sub in DEVICE)])
def test_help_has_a_short_name_and_is_not_cut(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short = call(capfdbinary, *name.split(), "-h")
    assert short == call(capfdbinary, *name.split(), "--help")
    assert (short[0], short[2]) == (0, "")
    assert not re.search(r"^  \w.*\.\.\.$", short[1].decode().partition("\nOptions:")[2], re.M)


def test_a_group_without_a_command_shows_its_help() -> None:
    ran = run("device")
    assert (ran.status, ran.out) == (2, b"")
    assert ran.err.startswith("Usage: vsockdump device")


def test_names_in_complaints_cannot_reach_the_terminal(tmp_path: Path) -> None:
    hostile = tmp_path / "\x1b[2J\u202e\nx"
    ran = run("-r", hostile)
    assert ran.status == 1
    assert all(char.isprintable() for char in ran.err.replace("\n", ""))
    hostile.write_bytes(Path(ECHO).read_bytes())
    assert r"reading from file" in (err := run("-r", hostile).err)
    assert all(char.isprintable() for char in err[:-1])


def test_a_name_that_is_no_utf8_can_be_read(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.pcap"
    Path(os.fsdecode(odd)).write_bytes(Path(ECHO).read_bytes())
    ran = run("-r", os.fsdecode(odd), "--count")
    assert (ran.status, ran.lines) == (0, [f"{PACKETS} packets"])
    assert "udcff" in run("-r", os.fsdecode(odd)).err


@pytest.mark.parametrize("name", captures.names())
def test_every_bundled_capture_can_be_printed(
    capfdbinary: pytest.CaptureFixture[bytes], name: str
) -> None:
    path = str(captures.path(name))
    _, counted, _ = call(capfdbinary, "--count", "-r", path)
    for options in (["-vvv", "-XX", "-e"], ["--json"]):
        status, out, _ = call(capfdbinary, *options, "-r", path)
        lines = [line for line in out.splitlines() if not line.startswith(b"\t")]
        assert status == 0
        assert len(lines) == int(counted.split()[0])


def test_json_of_a_file_follows_connections() -> None:
    ran = run("-r", ECHO, "--json", "-c", "3")
    assert ran.err == ""
    assert [json.loads(line)["conn"] for line in ran.lines] == [1, 1, 1]


@pytest.mark.parametrize("arguments", [["-r", ECHO], ["--help"], ["-r", ECHO, "--count"]])
def test_output_that_cannot_be_written_is_told_of(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = run(*arguments, stdout=full)
    assert ran.status == 1
    assert "vsockdump: standard output: No space left on device" in ran.err.splitlines()


@pytest.mark.parametrize(
    ("closed", "arguments", "status", "says"),
    [
        (">&-", f"-r {ECHO}", 1, "standard output: Bad file descriptor"),
        (">&-", f"-r {ECHO} -w -", 1, "standard output: Bad file descriptor"),
        ("<&-", "-r -", 1, "standard input: Bad file descriptor"),
        ("2>&-", f"-r {ECHO} --count", 0, ""),
        ("2>&-", f"-r {ECHO}.none", 1, ""),
    ],
)
def test_standard_streams_may_be_closed(
    closed: str, arguments: str, status: int, says: str
) -> None:
    command = f"exec {' '.join(VSOCKDUMP)} {arguments} {closed}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, env=environment(), check=False, text=True
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    assert (done.stdout == f"{PACKETS} packets\n") == ("--count" in arguments)


def test_programs_are_printed_in_three_ways(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    shown = [call(capfdbinary, option, "op", "rst") for option in ("-d", "-dd", "-ddd")]
    assert [status for status, _, _ in shown] == [0, 0, 0]
    human, c, numbers = (out.decode().splitlines() for _, out, _ in shown)
    assert re.match(r"\(000\) ", human[0])
    assert c[0].startswith("{ 0x")
    assert len(human) == len(c) == int(numbers[0]) == len(numbers) - 1
