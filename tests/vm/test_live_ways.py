"""Every way to set a capture up and to end it, all on the same traffic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_savefile
import pytest

from . import live, vm
from .agent import DEVICE
from .plain_frames import Frame, frames, sent

Judge = Callable[..., str]
WHOLE = ("interrupted.pcapng", "terminated.pcap", "unbuffered.pcapng", "user.pcapng")
"""Files of captures that ran from before the traffic until after it."""


@pytest.fixture(scope="session")
def folder(run: vm.Run) -> Path:
    return run.scenario("ways")


@pytest.fixture(scope="session")
def judged(folder: Path) -> list[Frame]:
    """What tcpdump saw: everything."""
    return frames(folder / "tcpdump.pcap")


def tool(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = vm.read_json(folder / "tools.json")[name]
    return found


def said(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.err").read_text(encoding="utf-8").splitlines()


def keys(found: list[Frame]) -> list[tuple[bytes, int]]:
    return [(f.data, f.origlen) for f in found]


def test_the_traffic_was_seen(folder: Path, judged: list[Frame]) -> None:
    truth = vm.read_json(folder / "truth.json")
    true = {
        side["sha256"]
        for part in ("before", "after")
        for connection in truth[part]["connections"]
        for side in (connection["client_to_server"], connection["server_to_client"])
    }
    assert {each.sha256 for each in sent(judged).values()} == true


@pytest.mark.parametrize("file", WHOLE)
def test_a_capture_that_is_ended_leaves_a_whole_file(
    folder: Path, judged: list[Frame], capinfos: Judge, file: str
) -> None:
    assert keys(frames(folder / file)) == keys(judged)
    assert str(len(judged)) in capinfos("-c", "-M", folder / file)
    story = tool(folder, Path(file).stem)
    assert story["status"] == 0
    assert story["counts"] == {
        "captured": len(judged),
        "received by filter": len(judged),
        "dropped by kernel": 0,
    }


@pytest.mark.parametrize("file", [name for name in WHOLE if name.endswith("ng")])
def test_statistics_end_the_file(folder: Path, judged: list[Frame], file: str) -> None:
    plain = plain_savefile.read(folder / file)
    assert plain.kinds[-1] == plain_savefile.ISB
    assert len(plain.statistics) == 1


def test_what_is_said_is_what_tcpdump_says(folder: Path) -> None:
    def without_numbers(lines: list[str]) -> list[str]:
        return [line.lstrip("0123456789") for line in lines if line[:1].isdigit()]

    theirs = without_numbers(said(folder, "tcpdump"))
    assert without_numbers(said(folder, "interrupted")) == theirs
    listening = said(folder, "interrupted")[0]
    assert listening == said(folder, "tcpdump")[0].removeprefix("tcpdump: ")


def test_a_count_ends_the_capture(folder: Path, judged: list[Frame]) -> None:
    assert keys(frames(folder / "counted.pcapng")) == keys(judged)[: live.LIMIT]
    assert tool(folder, "counted")["status"] == 0
    assert tool(folder, "counted")["counts"]["captured"] == live.LIMIT


def test_a_snapshot_length_cuts_and_keeps_the_true_length(
    folder: Path, judged: list[Frame]
) -> None:
    cut = plain_savefile.read(folder / "snapped.pcapng")
    assert [(p.data, p.origlen) for p in cut.packets] == [
        (f.data[: live.SNAPLEN], f.origlen) for f in judged
    ]
    assert cut.interfaces[0].snaplen == live.SNAPLEN
    assert any(p.origlen > live.SNAPLEN for p in cut.packets)


def test_an_unbuffered_file_can_be_read_before_its_end(folder: Path, judged: list[Frame]) -> None:
    early = plain_savefile.read(folder / "early.pcapng")
    seen = [(p.data, p.origlen) for p in early.packets]
    truth = vm.read_json(folder / "truth.json")
    (second,) = truth["after"]["connections"]
    before = [f for f in judged if second["server"][1] not in f.ports]
    # All of the first connection was there a second after it had ended.
    assert seen == keys(before)


def test_a_closed_pipe_ends_a_capture_without_a_word(folder: Path, judged: list[Frame]) -> None:
    for name in ("text", "piped"):
        assert tool(folder, name)["status"] == 0
        assert all("listening on" in line or line[:1].isdigit() for line in said(folder, name))
    head = (folder / "text-head.txt").read_text(encoding="utf-8").splitlines()
    first = judged[0]
    assert f"local.{first.src[1]} > local.{first.dst[1]}: REQUEST" in head[0]
    piped = plain_savefile.parse((folder / "piped-head.pcapng").read_bytes())
    packets = [(p.data, p.origlen) for p in piped.packets]
    assert packets == keys(judged)[: len(packets)] != []


def test_json_lines_are_printed_live(folder: Path, judged: list[Frame]) -> None:
    lines = (folder / "json.out").read_text(encoding="utf-8").splitlines()
    ends = [(x["src_port"], x["dst_port"], x["length"]) for x in map(json.loads, lines)]
    assert ends == [(*f.ports, f.length) for f in judged]


def test_several_devices_are_captured_side_by_side(folder: Path, judged: list[Frame]) -> None:
    both = plain_savefile.read(folder / "several.pcapng")
    assert [plain_savefile.first(i.options, 2) for i in both.interfaces] == [
        DEVICE.encode(),
        live.SECOND.encode(),
    ]
    for index in range(2):
        mine = [(p.data, p.origlen) for p in both.packets if p.interface == index]
        assert mine == keys(judged)
    assert len(both.statistics) == 2


def test_create_makes_a_device_and_removes_it(folder: Path) -> None:
    devices = vm.read_json(folder / "devices.json")
    assert devices == {
        "before": [DEVICE],
        "during": [DEVICE, live.SECOND],
        "after": [DEVICE],
    }


def test_scapys_sniff_decodes_what_arrives(folder: Path, judged: list[Frame]) -> None:
    sniffed = vm.read_json(folder / "sniffed.json")
    # scapy's sockets read at most 65,535 bytes of a frame.
    most = 65_535
    assert [bytes.fromhex(p["bytes"]) for p in sniffed] == [f.data[:most] for f in judged]
    for packet, plain in zip(sniffed, judged, strict=True):
        (outer, tap), (inner, virtio), *rest = packet["layers"]
        assert (outer, inner) == ("VSockMon", "VirtioVsock")
        assert [name for name, _ in rest] == (["Raw"] if plain.length else [])
        assert (tap["src_cid"], tap["src_port"]) == plain.src
        assert (tap["dst_cid"], tap["dst_port"]) == plain.dst
        assert (virtio["op"], virtio["type"]) == (plain.op, plain.kind)
        assert (virtio["len"], virtio["flags"]) == (plain.length, plain.flags)
