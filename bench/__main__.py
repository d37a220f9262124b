"""``python -m bench``: vsockdump and its peers on the same files, side by side.

Generates its inputs once into bench/data, runs every race, prints the table, and with --write puts
it into docs/performance.md. ``--short`` takes small inputs and one round: it fails on a run that
breaks, never on a time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from bench.generate import Traffic
from bench.page import measured_with, write_part
from bench.race import Broken, Race, Result, compete, missing, table
from vsockdump.sinks.savefile import SavefileWriter

DATA: Final = Path(__file__).parent / "data"
MILLION: Final = 1_000_000
_SIXTEENTH_PORT: Final = "port 1024"
_RAW_PORT: Final = "link[16:4] = 0x00040000 or link[20:4] = 0x00040000"
_MIXED: Final = (0, 8, 24, 64, 136, 1000, 4096, 65536)


def inputs(scale: float) -> dict[str, tuple[Traffic, str]]:
    """Name of each input to its traffic and file format; ``scale`` 1 is full size."""

    def count(packets: int) -> int:
        return max(int(packets * scale), 2000)

    small = Traffic(packets=count(MILLION))
    return {
        "10m.pcapng": (Traffic(packets=count(10 * MILLION)), "pcapng"),
        "1m.pcapng": (small, "pcapng"),
        "1m.pcap": (small, "pcap"),
        "100k.pcapng": (Traffic(packets=count(MILLION // 10)), "pcapng"),
        "c100k.pcapng": (
            Traffic(packets=count(MILLION), connections=max(int(100_000 * scale), 200)),
            "pcapng",
        ),
        "10k.pcapng": (Traffic(packets=count(MILLION // 100)), "pcapng"),
        "mixed.pcapng": (Traffic(packets=count(MILLION // 5), sizes=_MIXED), "pcapng"),
        "snapped.pcapng": (Traffic(packets=count(MILLION), snaplen=96), "pcapng"),
        "64k.pcapng": (Traffic(packets=count(64_000), connections=10, sizes=(65536,)), "pcapng"),
        "1m.pcapng.zst": (small, "pcapng"),
        "1m.pcapng.gz": (small, "pcapng"),
        "small.pcapng": (Traffic(packets=100, connections=4), "pcapng"),
    }


def _folder(scale: float) -> Path:
    return DATA / f"{scale:g}"


def generate(scale: float) -> None:
    """Make the inputs that are not there yet."""
    folder = _folder(scale)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (traffic, form) in inputs(scale).items():
        path = folder / name
        if path.exists():
            continue
        print(f"generating {path}", file=sys.stderr)
        # The ending tells the writer to compress, so it stays last.
        partial = folder / f"partial-{name}"
        with SavefileWriter(partial, format="pcap" if form == "pcap" else "pcapng") as writer:
            for batch in traffic.batches():
                writer.write(batch)
        partial.rename(path)


def races(folder: Path) -> list[Race]:
    """Every job and its peer."""
    ours = str(Path(sys.executable).with_name("vsockdump"))
    script = (sys.executable, "-m", "bench.work")

    def at(name: str) -> str:
        return str(folder / name)

    def race(
        name: str,
        mine: tuple[str, ...],
        peer_name: str,
        peer: tuple[str, ...],
        aim: float,
        wall: bool = False,
    ) -> Race:
        return Race(name=name, ours=mine, peer_name=peer_name, peer=peer, aim=aim, wall=wall)

    def copying(name: str) -> tuple[str, ...]:
        return ("tcpdump", "-r", at(name), "-w", "/dev/null")

    io_stat = ("tshark", "-q", "-z", "io,stat,0", "-r")
    return [
        race(
            "decode all columns, 10M",
            (*script, "decode", at("10m.pcapng")),
            "tcpdump -r -w /dev/null",
            copying("10m.pcapng"),
            0.8,
        ),
        race(
            "decode all columns, 1M in classic pcap",
            (*script, "decode", at("1m.pcap")),
            "tcpdump -r -w /dev/null",
            copying("1m.pcap"),
            2.5,
        ),
        race(
            "decode all columns, mixed sizes",
            (*script, "decode", at("mixed.pcapng")),
            "tcpdump -r -w /dev/null",
            copying("mixed.pcapng"),
            2,
        ),
        race(
            "text with seq and window, 10M",
            (ours, "-ttnr", at("10m.pcapng")),
            "tcpdump -ttnr",
            ("tcpdump", "-ttnr", at("10m.pcapng")),
            0.9,
        ),
        race(
            "text, 1M snapped to 96 bytes",
            (ours, "-ttnr", at("snapped.pcapng")),
            "tcpdump -ttnr",
            ("tcpdump", "-ttnr", at("snapped.pcapng")),
            1,
        ),
        race(
            "verbose text with in flight and windows, 10M",
            (ours, "-ttvvnr", at("10m.pcapng")),
            "tcpdump -ttvvnr",
            ("tcpdump", "-ttvvnr", at("10m.pcapng")),
            0.35,
        ),
        race(
            "text, 1M over 100,000 connections",
            (ours, "-ttnr", at("c100k.pcapng")),
            "tcpdump -ttnr",
            ("tcpdump", "-ttnr", at("c100k.pcapng")),
            1.3,
        ),
        race(
            "connections and credit, 1M",
            (ours, "conns", at("1m.pcapng"), "--limit", "10"),
            "tshark -q -z io,stat,0",
            (*io_stat, at("1m.pcapng")),
            0.25,
        ),
        race(
            "connections and credit, 1M over 100,000 connections",
            (ours, "conns", at("c100k.pcapng"), "--limit", "10"),
            "tshark -q -z io,stat,0",
            (*io_stat, at("c100k.pcapng")),
            0.5,
        ),
        race(
            "--json, 1M",
            (ours, "--json", "-r", at("1m.pcapng")),
            "tshark -T ek",
            ("tshark", "-T", "ek", "-r", at("1m.pcapng")),
            0.1,
        ),
        race(
            "filter and write, 1M",
            (ours, "-r", at("1m.pcapng"), "-w", "/dev/null", *_SIXTEENTH_PORT.split()),
            "tshark -Y -w",
            (
                "tshark",
                "-r",
                at("1m.pcapng"),
                "-Y",
                "vsock.src_port == 1024 or vsock.dst_port == 1024",
                "-w",
                "/dev/null",
            ),
            0.15,
        ),
        race(
            "filter and write, 1M, against the raw filter",
            (ours, "-r", at("1m.pcapng"), "-w", "/dev/null", *_SIXTEENTH_PORT.split()),
            "tcpdump -r -w /dev/null 'link[...]'",
            (*copying("1m.pcapng"), _RAW_PORT),
            2,
        ),
        race(
            "counting, 64 KiB frames",
            (ours, "--count", "-r", at("64k.pcapng")),
            "tcpdump -r -w /dev/null",
            copying("64k.pcapng"),
            0.6,
        ),
        race(
            "counting, 1M",
            (ours, "--count", "-r", at("1m.pcapng")),
            "capinfos -c",
            ("capinfos", "-c", at("1m.pcapng")),
            1.5,
        ),
        race(
            "connections, 1M in zstandard",
            (ours, "conns", at("1m.pcapng.zst"), "--limit", "10"),
            "tshark -q -z io,stat,0",
            (*io_stat, at("1m.pcapng.gz")),
            0.5,
        ),
        race(
            "connections, 1M in gzip",
            (ours, "conns", at("1m.pcapng.gz"), "--limit", "10"),
            "tshark -q -z io,stat,0",
            (*io_stat, at("1m.pcapng.gz")),
            0.5,
        ),
        race(
            "iterating Packet objects, 1M",
            (*script, "packets", at("1m.pcapng")),
            "dpkt + struct",
            (*script, "dpkt_packets", at("1m.pcapng")),
            0.25,
        ),
        race(
            "iterating Packet objects, 10k",
            (*script, "packets", at("10k.pcapng")),
            "pyshark",
            (*script, "pyshark_packets", at("10k.pcapng")),
            0.25,
        ),
        race(
            "scapy packets, 100k",
            (*script, "scapy_packets", at("100k.pcapng")),
            "scapy PcapReader",
            (*script, "scapy_reader", at("100k.pcapng")),
            0.35,
        ),
        race(
            "start to first packet",
            (ours, "-c", "1", "-r", at("small.pcapng")),
            "tshark -c 1",
            ("tshark", "-c", "1", "-r", at("small.pcapng")),
            0.6,
            wall=True,
        ),
    ]


def report(results: list[Result], command: str) -> str:
    """The table and what it was measured with."""
    tools = {
        "tcpdump": ("tcpdump", "--version"),
        "tshark": ("tshark", "--version"),
        "dpkt": (sys.executable, "-c", "import dpkt; print(dpkt.__version__)"),
        "pyshark": (
            sys.executable,
            "-c",
            "from importlib.metadata import version; print(version('pyshark'))",
        ),
        "scapy": (sys.executable, "-c", "import scapy; print(scapy.__version__)"),
    }
    about = [
        measured_with(command, tools),
        "Ratios are ours to the peer's, medians of alternating runs; MiB is our peak memory.",
    ]
    return "\n".join([*about, "", table(results)])


@click.command()
@click.option("--short", is_flag=True, help="Small inputs, one round: only shows that all runs.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--only", help="Only races whose name contains this.")
@click.option("--generate", "only_generate", is_flag=True, help="Only make the inputs.")
@click.option("--write", is_flag=True, help="Put the table into docs/performance.md.")
def main(short: bool, rounds: int, only: str | None, only_generate: bool, write: bool) -> None:
    """Measure vsockdump beside its peers."""
    scale = 0.01 if short else 1.0
    if only_generate:
        generate(scale)
        return
    # In a process of its own: whoever a large one starts is counted as large.
    again = [sys.executable, "-m", "bench", "--generate", *(["--short"] if short else [])]
    subprocess.run(again, check=True)
    folder = _folder(scale)
    chosen = [race for race in races(folder) if only is None or only in race.name]
    lacking = missing(chosen)
    if lacking:
        raise click.ClickException(f"not installed: {', '.join(lacking)}")
    results = []
    for race in chosen:
        try:
            result = compete(race, 1 if short else rounds)
        except Broken as broken:
            raise click.ClickException(str(broken)) from broken
        print(f"{result.ratio:6.2f} (aim {race.aim})  {race.name}", file=sys.stderr, flush=True)
        results.append(result)
    command = "python -m bench" + (" --short" if short else f" --rounds {rounds}")
    text = report(results, command)
    print(text)
    if write:
        write_part("bench", text)
    if short:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
