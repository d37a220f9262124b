"""Make plausible vsock traffic in bulk: the input of the benchmarks, and of tests that need much.

Strategy: columns all the way. Each packet draws a connection; its place within that connection
tells what it is (REQUEST, RESPONSE, data to and fro, SHUTDOWN, RST), and running sums give every
header an honest fwd_cnt, so trackers find a clean history. The same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.frames import SLACK, FrameBatch, Interface, Ints, Section
from vsockdump.wire import MON_OP_OF, Op, ShutdownFlag, Transport, Type

SEGMENT: Final = 1_000_000
"""Packets generated at a time; connections do not outlive a segment."""
EPOCH_NS: Final = 1_780_000_000_000_000_000
GAP_NS: Final = 1_000
BUF_ALLOC: Final = 256 * 1024
_ROWS: Final = 16_384
_CLIENT_PORT: Final = 1 << 20
_SERVER_PORT: Final = 1024
_GUEST: Final = wire.FIRST_GUEST_CID


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What to make: packets, connections in each segment, payload sizes (drawn evenly), snaplen."""

    packets: int
    connections: int = 1000
    sizes: tuple[int, ...] = (8, 24, 64, 136)
    snaplen: int = 0
    seed: int = 1

    def batches(self) -> Iterator[FrameBatch]:
        """The traffic in batches, each with a buffer of its own."""
        interfaces = (
            Interface(
                name="vsockmon0",
                snaplen=self.snaplen,
                section=Section(os="Linux 6.12.117", application="bench/generate.py"),
            ),
        )
        for first in range(0, self.packets, SEGMENT):
            count = min(SEGMENT, self.packets - first)
            headers, lengths = self._segment(count, first)
            for row in range(0, count, _ROWS):
                rows = slice(row, min(row + _ROWS, count))
                yield self._frames(headers[rows], lengths[rows], first + row, interfaces)

    def _segment(self, count: int, first: int) -> tuple[NDArray[np.uint8], Ints]:
        """Both headers of ``count`` packets, shape (count, 76), and their payload lengths."""
        rng = np.random.default_rng([self.seed, first])
        conn = rng.integers(0, self.connections, count)
        order = np.argsort(conn, kind="stable")
        total = np.bincount(conn, minlength=self.connections)
        begins = np.cumsum(total) - total
        place = np.empty(count, np.int64)
        place[order] = np.arange(count) - begins[conn[order]]
        left = total[conn] - 1 - place
        op = np.full(count, Op.RW, np.int64)
        op[place == 0] = Op.REQUEST
        op[place == 1] = Op.RESPONSE
        op[(left == 1) & (place > 1)] = Op.SHUTDOWN
        op[(left == 0) & (place > 2)] = Op.RST
        from_client = place % 2 == 0
        # Every fifth packet of data is an answer without any: a credit update.
        op[(op == Op.RW) & (place % 5 == 4)] = Op.CREDIT_UPDATE
        length = np.where(
            op == Op.RW, np.array(self.sizes)[rng.integers(0, len(self.sizes), count)], 0
        )
        fwd = np.empty(count, np.int64)
        for side in (True, False):
            sent = np.where(from_client[order] == side, length[order], 0)
            running = np.cumsum(sent) - sent
            running -= running[begins[conn[order]]]
            received = np.empty(count, np.int64)
            received[order] = running
            fwd[from_client != side] = received[from_client != side]
        rst = op == Op.RST
        record = np.zeros(count, wire.HEADERS)
        client, server = _CLIENT_PORT + first + conn, _SERVER_PORT + conn % 16
        for prefix in ("", "virtio_"):
            record[prefix + "src_cid"] = np.where(from_client, _GUEST, wire.CID_HOST)
            record[prefix + "dst_cid"] = np.where(from_client, wire.CID_HOST, _GUEST)
            record[prefix + "src_port"] = np.where(from_client, client, server)
            record[prefix + "dst_port"] = np.where(from_client, server, client)
        mon_op = np.zeros(max(Op) + 1, np.int64)
        for known, meaning in MON_OP_OF.items():
            mon_op[known] = meaning
        record["mon_op"] = mon_op[op]
        record["transport"] = Transport.VIRTIO
        record["transport_len"] = wire.VIRTIO_HDR_LEN
        record["len"] = length
        record["type"] = Type.STREAM
        record["op"] = op
        record["flags"] = np.where(op == Op.SHUTDOWN, ShutdownFlag.RCV | ShutdownFlag.SEND, 0)
        record["buf_alloc"] = np.where(rst, 0, BUF_ALLOC)
        record["fwd_cnt"] = np.where(rst, 0, fwd & 0xFFFF_FFFF)
        raw = record.view(np.uint8).reshape(count, wire.HEADERS.itemsize)
        return raw[:, : wire.HEADERS_LEN], length

    def _frames(
        self,
        headers: NDArray[np.uint8],
        lengths: Ints,
        first: int,
        interfaces: tuple[Interface, ...],
    ) -> FrameBatch:
        count = lengths.size
        origlen = wire.HEADERS_LEN + lengths
        caplen = np.minimum(origlen, self.snaplen) if self.snaplen else origlen
        offset = np.cumsum(caplen) - caplen
        size = int(caplen.sum())
        buf = np.zeros(size + SLACK, np.uint8)
        # Payload is a fixed pattern of letters; what it says matters to nobody.
        buf[:size] = np.arange(size, dtype=np.uint8) % 26 + ord("a")
        places = offset[:, None] + np.arange(wire.HEADERS_LEN)
        there = np.arange(wire.HEADERS_LEN) < caplen[:, None]
        buf[places[there]] = headers[there]
        numbers = np.arange(first + 1, first + count + 1, dtype=np.int64)
        return FrameBatch(
            buf=buf,
            offset=offset,
            caplen=caplen,
            origlen=origlen,
            time_ns=EPOCH_NS + numbers * GAP_NS,
            interface=np.zeros(count, np.int64),
            number=numbers,
            interfaces=interfaces,
        )
