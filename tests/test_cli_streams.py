"""The command between pipes, under signals, on a terminal and in front of damage."""

from __future__ import annotations

import fcntl
import gzip
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plain_savefile
import pytest
from command import ECHO, ENVIRONMENT, SECONDS, VSOCKDUMP, environment, run, start
from plain_blocks import pcap_header
from plain_blocks import record as plain_record

from vsockdump import captures
from vsockdump.cli.chart import ASCII, BLOCKS

STALL = str(captures.path("stall-6.12.pcapng"))
PLAIN = plain_savefile.read(ECHO)
NANO = b"\x4d\x3c\xb2\xa1"
# As pcap, whose records a test can cut between by counting.
CAPTURE = pcap_header(NANO) + b"".join(
    plain_record(NANO, p.data, seconds=p.time_ns // 10**9, fraction=p.time_ns % 10**9)
    for p in PLAIN.packets
)
PACKETS = len(PLAIN.packets)
FILE_HEADER = 24
RECORD_HEADER = 16


def record(place: int) -> int:
    """Where a packet's record begins in the capture."""
    return FILE_HEADER + sum(RECORD_HEADER + len(p.data) for p in PLAIN.packets[:place])


@contextmanager
def running(*arguments: str | Path, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended with the block, whatever happens."""
    process = start(*arguments, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """Wait for its end without closing its input: status, the rest of its output, complaints."""
    assert process.stderr is not None
    status = process.wait(SECONDS)
    out = process.stdout.read() if process.stdout is not None else b""
    return status, out, process.stderr.read().decode()


def read_lines(process: subprocess.Popen[bytes], count: int) -> list[bytes]:
    """So many lines of its output, as soon as they come; it is ended when they do not."""
    assert process.stdout is not None
    patience = threading.Timer(SECONDS, process.kill)
    patience.start()
    try:
        return [process.stdout.readline() for _ in range(count)]
    finally:
        patience.cancel()


def wait_for(file: Path, size: int) -> None:
    """Wait until a file has so many bytes."""
    until = time.monotonic() + SECONDS
    while not file.exists() or file.stat().st_size < size:
        assert time.monotonic() < until, f"{file} does not grow"
        time.sleep(0.02)


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_packets_appear_as_they_arrive(monkeypatch: pytest.MonkeyPatch, unbuffered: str) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    whole = run("-r", ECHO).out.splitlines(keepends=True)
    with running("-r", "-") as process:
        for place in (1, 2, 3):
            feed(process, CAPTURE[record(place - 1) if place > 1 else 0 : record(place)])
            assert read_lines(process, 1) == [whole[place - 1]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("format", ["pcapng", "pcap"])
def test_a_signal_leaves_a_whole_file(tmp_path: Path, number: signal.Signals, format: str) -> None:
    out = tmp_path / "out"
    with running("-r", "-", "-w", out, "--format", format) as process:
        feed(process, CAPTURE[: record(10) + 3])
        wait_for(out, 10 * RECORD_HEADER + sum(len(p.data) for p in PLAIN.packets[:10]))
        process.send_signal(number)
        status, _, err = ended(process)
    assert (status, err) == (0, "reading from standard input\n")
    written = plain_savefile.read(out)
    assert written.damage is None
    assert [p.data for p in written.packets] == [p.data for p in PLAIN.packets[:10]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_printing_quietly(number: signal.Signals) -> None:
    with running("-r", "-", "--count") as process:
        feed(process, CAPTURE)
        time.sleep(1)
        process.send_signal(number)
        status, out, err = ended(process)
    assert (status, err) == (0, "")
    assert int(out.split()[0]) in (0, PACKETS)


def test_hangups_are_ignored_under_nohup(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(
        *("-r", "-", "-w", out, "-U"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as process:
        feed(process, CAPTURE[: record(1)])
        wait_for(out, RECORD_HEADER)
        process.send_signal(signal.SIGHUP)
        assert process.stdin is not None
        process.stdin.write(CAPTURE[record(1) :])
        process.stdin.close()
        assert ended(process)[0] == 0
    assert len(plain_savefile.read(out).packets) == PACKETS


PIPE = 65_536
"""Bytes that a pipe holds."""
MUCH = CAPTURE[:FILE_HEADER] + CAPTURE[FILE_HEADER:] * 400
"""More than fits into pipes, and more still when it is printed."""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_signal_cuts_no_line_of_a_slow_reader(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unbuffered: str
) -> None:
    """What is being printed when the signal comes is printed to its end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    (tmp_path / "much").write_bytes(MUCH)
    with running("-r", tmp_path / "much") as process:
        assert process.stdout is not None
        first = process.stdout.read(10)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out = first + process.stdout.read()
        assert process.wait(SECONDS) == 0
    assert out.endswith(b"\n")
    assert len(out) > 2 * PIPE
    assert run("-r", tmp_path / "much").out.startswith(out)


def test_a_second_signal_ends_what_is_stuck(tmp_path: Path) -> None:
    """Nobody reads the pipe, so printing never comes to an end by itself."""
    (tmp_path / "much").write_bytes(MUCH)
    with running("-r", tmp_path / "much", "-XX") as process:
        assert process.stdout is not None
        select.select([process.stdout], [], [], SECONDS)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 128 + signal.SIGINT
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("options", ["", "-w -", "--json", "-XX", "-w - --format pcap", "--help"])
def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path, options: str) -> None:
    much = tmp_path / "much"
    much.write_bytes(MUCH)
    with running("-r", much, *options.split()) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        process.stdout = None
        status, _, err = ended(process)
    said = f"reading from file {much}\n"
    assert (status, err) == (0, "" if options in ("--json", "--help") else said)


def test_head_takes_its_line_and_all_is_well() -> None:
    script = f"exec {' '.join(VSOCKDUMP)} -r {ECHO} | head -1; echo ${{PIPESTATUS[@]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, env=environment(), check=True, text=True
    )
    first, statuses = done.stdout.splitlines()
    assert first == run("-r", ECHO, "-c1").lines[0]
    assert statuses == "0 0"
    assert done.stderr == f"reading from file {ECHO}\n"


@pytest.mark.parametrize("cut", [1, RECORD_HEADER - 1, RECORD_HEADER, RECORD_HEADER + 40])
@pytest.mark.parametrize("options", [[], ["--json"], ["-w"]])
def test_a_cut_file_shows_all_whole_packets_then_one_error(
    tmp_path: Path, cut: int, options: list[str]
) -> None:
    damaged, out = tmp_path / "cut.pcap", tmp_path / "out"
    damaged.write_bytes(CAPTURE[: record(7) + cut])
    ran = run("-r", damaged, *options, *([out] if options == ["-w"] else []))
    assert ran.status == 1
    complaint = ran.err.splitlines()[-1]
    assert complaint.startswith(f"vsockdump: {damaged}: at byte {record(7)}: ")
    assert len(ran.err.splitlines()) == 1 + ("--json" not in options)
    shown = len(plain_savefile.read(out).packets) if options == ["-w"] else len(ran.lines)
    assert shown == 7


def test_conns_shows_what_it_followed_before_the_damage(tmp_path: Path) -> None:
    damaged = tmp_path / "cut.pcap"
    damaged.write_bytes(CAPTURE[: record(7) + 1])
    for command in ("conns", "credit", "check"):
        ran = run(command, damaged)
        assert ran.status == 1
        assert ran.out
        assert f"{damaged}: at byte {record(7)}: " in ran.err.splitlines()[-1]


@pytest.mark.parametrize("compress", [gzip.compress, None], ids=["gzip", "plain"])
def test_standard_input_may_be_compressed_and_comes_in_pieces(compress: Any) -> None:
    data = compress(CAPTURE) if compress else CAPTURE
    with running("-r", "-", "-q") as process:
        for at in range(0, len(data), 199):
            feed(process, data[at : at + 199])
        assert process.stdin is not None
        process.stdin.close()
        status, out, _ = ended(process)
    assert (status, out) == (0, run("-q", "-r", ECHO).out)


def test_a_pipe_of_two_of_us_keeps_everything() -> None:
    ours = f"{' '.join(VSOCKDUMP)}"
    script = f"{ours} -r {ECHO} -U -w - op rw | {ours} -r - --json"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, env=environment(), check=True, text=True
    )
    assert len(done.stdout.splitlines()) == len(run("-r", ECHO, "op", "rw").lines)


class Terminal:
    """A terminal of ours: what a program prints to it, byte for byte."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()

    def read(self, until: bytes) -> bytes:
        """Everything up to this text."""
        seen, end = b"", time.monotonic() + SECONDS
        while until not in seen:
            ready, _, _ = select.select([self.ours], [], [], max(end - time.monotonic(), 0))
            assert ready, seen
            seen += os.read(self.ours, 4096)
        return seen

    def rest(self) -> bytes:
        """What is there now."""
        seen = b""
        while select.select([self.ours], [], [], 0.2)[0]:
            try:
                seen += os.read(self.ours, 4096)
            except OSError:
                break
        return seen

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_a_terminal_sees_how_far_it_is(tmp_path: Path, terminal: Terminal) -> None:
    with running("-r", "-", "-w", tmp_path / "out", stderr=terminal.theirs) as process:
        feed(process, CAPTURE[: record(3)])
        terminal.read(b"reading from standard input\r\n")
        time.sleep(0.6)
        feed(process, CAPTURE[record(3) : record(5)])
        assert b"5 packets" in terminal.read(b"5 packets")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        # The line is taken away again.
        assert terminal.rest().endswith(b"\r\x1b[K")


def test_nobody_else_does(tmp_path: Path) -> None:
    with running("-r", "-", "-w", tmp_path / "out") as process:
        feed(process, CAPTURE[: record(3)])
        time.sleep(0.6)
        feed(process, CAPTURE[record(3) :])
        assert process.stdin is not None
        process.stdin.close()
        assert ended(process) == (0, b"", "reading from standard input\n")


def test_lines_are_colored_on_a_terminal_alone(terminal: Terminal) -> None:
    with running("-r", ECHO, "-c1", stdout=terminal.theirs) as process:
        assert process.wait(SECONDS) == 0
        assert b"\x1b[32mREQUEST\x1b[0m" in terminal.rest()
    with running("-r", ECHO, "-c1", "--color=never", stdout=terminal.theirs) as process:
        assert process.wait(SECONDS) == 0
        assert b"\x1b" not in terminal.rest()
    assert b"\x1b" not in run("-r", ECHO).out


ESCAPES = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("columns", ["40", "80", "100"])
@pytest.mark.parametrize("command", ["conns", "credit"])
def test_a_narrow_terminal_cuts_and_folds_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, command: str, columns: str
) -> None:
    wide = run(command, STALL).out
    monkeypatch.setitem(ENVIRONMENT, "COLUMNS", columns)
    size = struct.pack("4H", 24, int(columns), 0, 0)
    fcntl.ioctl(terminal.theirs, termios.TIOCSWINSZ, size)
    with running(command, STALL, stdout=terminal.theirs) as process:
        assert process.wait(SECONDS) == 0
        shown = terminal.rest()
    assert b"\x1b[1" in shown
    plain = ESCAPES.sub(b"", shown).replace(b"\r\n", b"\n")
    assert [line.rstrip() for line in plain.splitlines()] == wide.splitlines()


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp437", "utf-8"])
def test_any_encoding_of_the_output_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", encoding)
    ran = run("credit", STALL)
    assert (ran.status, ran.err) == (0, "")
    blocks = encoding == "utf-8"
    legend = ran.out.decode(encoding).splitlines()[-1]
    assert legend == (BLOCKS if blocks else ASCII).legend
    assert (ASCII.none * 20 in ran.out.decode(encoding)) is not blocks
    # A name from outside, in what is printed and in complaints.
    named = tmp_path / "\N{SNOWMAN}.pcapng"
    assert run("check", named).status == 1
    named.write_bytes(Path(STALL).read_bytes())
    assert run("check", named, "--fail-on", "never").status == 0


def test_text_that_an_encoding_lacks_is_escaped_on_standard_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "iso-8859-1")
    code = (
        "from vsockdump import cli, device;"
        "device.list_devices = lambda: [device.Device(name=chr(0x2603), index=1, up=True, mtu=9)];"
        "cli.main(['-D'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(), check=True
    )
    assert done.stdout == b"1.\\u2603 [Up]\n"
    assert done.stderr == b""


def test_a_terminal_gets_no_savefile(terminal: Terminal) -> None:
    with running("-r", ECHO, "-w", "-", stdout=terminal.theirs) as process:
        assert process.wait(SECONDS) == 2
        assert terminal.rest() == b""


def test_output_may_be_a_pipe_that_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "much").write_bytes(MUCH)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with running("-r", tmp_path / "much", stdout=theirs) as process, os.fdopen(ours, "rb") as out:
        os.close(theirs)
        time.sleep(0.5)
        shown = out.read()
        assert process.wait(SECONDS) == 0
    assert shown == run("-r", tmp_path / "much").out


@pytest.mark.parametrize("name", ["conns", "credit", "check"])
def test_reports_are_colored_on_a_terminal_alone(name: str, terminal: Terminal) -> None:
    shown = run(name, STALL).out.replace(b"\n", b"\r\n")
    assert b"\x1b" not in shown
    with running(name, STALL, stdout=terminal.theirs) as process:
        assert process.wait(SECONDS) in (0, 11)
        colored = terminal.rest()
    assert b"\x1b[" in colored
    assert re.sub(rb"\x1b\[[0-9]+m", b"", colored) == shown


@pytest.mark.parametrize("line", [["conns", STALL], ["check", STALL], ["-r", STALL]])
def test_nobody_has_to_have_colors(
    line: list[str], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with running(*line, stdout=terminal.theirs) as process:
        assert process.wait(SECONDS) in (0, 11)
        assert b"\x1b" not in terminal.rest()
