"""Traffic makers: each makes one kind of vsock traffic on loopback and returns the truth of it.

Sizes are parameters: the tests use full ones, the bundled captures smaller ones. Every maker
leaves no socket open and ends when the kernel has nothing more to send.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence

from .peers import (
    SEQPACKET,
    STREAM,
    TIMEOUT,
    Background,
    End,
    Listener,
    close_both,
    connect,
    pair,
    payload,
)
from .truth import Truth

KIB = 1024
SMALL_BUFFER = 8 * KIB


def echo(sizes: Sequence[int] = (6, 1, 100, 1000, 5000, 70_000, 300_000)) -> Truth:
    """A client sends, the server sends the same back, for each of the sizes."""
    truth = Truth()
    client, server = pair(truth)
    for number, size in enumerate(sizes):
        data = payload(size, number)

        def back(data: bytes = data) -> None:
            server.read_exactly(len(data))
            server.send(data)

        answer = Background(back)
        client.send(data)
        client.read_exactly(size)
        answer.result()
    close_both(client, server)
    return truth


def refused(attempts: int = 3) -> Truth:
    """Connecting to a port where nobody listens."""
    truth = Truth()
    for _ in range(attempts):
        with Listener() as listener:
            port = listener.port
        try:
            connect(truth, port)
        except ConnectionResetError:
            continue
        raise RuntimeError(f"somebody answers on port {port}")
    return truth


def slow_reader(
    total: int = 3 * 1024 * KIB,
    first_read: int = 1024 * KIB,
    sleeps: tuple[float, float] = (1.5, 0.7),
) -> Truth:
    """A receiver that sleeps, reads `first_read` bytes, sleeps again, then reads all."""
    truth = Truth()
    client, server = pair(truth)

    def send() -> None:
        client.send(payload(total))
        client.shutdown(socket.SHUT_WR)

    sender = Background(send)
    server.sleep(sleeps[0])
    server.read_exactly(first_read)
    server.sleep(sleeps[1])
    server.read_to_end()
    sender.result()
    close_both(client, server)
    return truth


def never_reads(seconds: float = 1.0, offered: int = 4 * 1024 * KIB) -> Truth:
    """A receiver that never reads: the sender fills its window and gives up after a while."""
    truth = Truth()
    client, server = pair(truth)
    truth.notes["send_error"] = client.send_until_full(payload(64 * KIB), offered // (64 * KIB))
    client.sleep(seconds)
    close_both(client, server)
    return truth


def _one_way(truth: Truth, client: End, server: End, total: int, chunk: int) -> None:
    sender = Background(lambda: client.send(payload(total)))
    left = total
    while left:
        take = min(chunk, left)
        server.read_exactly(take)
        left -= take
    sender.result()
    server.send(b"thanks")
    client.read_exactly(6)
    close_both(client, server)


def small_sender(total: int = 100 * KIB) -> Truth:
    """A client with a buffer of 8 KiB sends to a server with a usual one."""
    truth = Truth()
    client, server = pair(truth, client_buffer=SMALL_BUFFER)
    _one_way(truth, client, server, total, 4 * KIB)
    return truth


def small_receiver(total: int = 100 * KIB) -> Truth:
    """A client with a usual buffer sends to a server with one of 8 KiB."""
    truth = Truth()
    client, server = pair(truth, server_buffer=SMALL_BUFFER)
    _one_way(truth, client, server, total, 4 * KIB)
    return truth


def seqpacket(sizes: Sequence[int] = (1, 5, 128, 129, 4096, 70_000, 200_000)) -> Truth:
    """Messages both ways, every second one with MSG_EOR; large ones take several packets."""
    truth = Truth()
    client, server = pair(truth, SEQPACKET)
    for number, size in enumerate(sizes):
        flags = socket.MSG_EOR if number % 2 else 0
        data = payload(size, number)
        client.send_message(data, flags)
        if server.read(size + 1) != data:
            raise RuntimeError(f"a message of {size} bytes came out different")
        server.send_message(data[: size // 2 + 1], flags)
        client.read(size)
    close_both(client, server)
    return truth


def seqpacket_bulk(messages: int = 300, size: int = 10_000) -> Truth:
    """Many messages one way, as fast as they are read."""
    truth = Truth()
    client, server = pair(truth, SEQPACKET)

    def send() -> None:
        for number in range(messages):
            client.send_message(payload(size, number))

    sender = Background(send)
    for _ in range(messages):
        server.read(size)
    sender.result()
    close_both(client, server)
    return truth


def half_close(size: int = 3000) -> Truth:
    """One side shuts its sending side and still receives; first the client, then the server."""
    truth = Truth()
    for first in ("client", "server"):
        client, server = pair(truth)
        shutting, other = (client, server) if first == "client" else (server, client)
        shutting.send(payload(size, 1))
        shutting.shutdown(socket.SHUT_WR)
        other.read_to_end()
        other.sleep(0.1)
        other.send(payload(size, 2))
        shutting.read_exactly(size)
        close_both(other, shutting)
    # A side may also say that it will not read any more; the other can still be heard.
    client, server = pair(truth)
    server.shutdown(socket.SHUT_RD)
    time.sleep(0.05)
    server.send(payload(size, 3))
    client.read_exactly(size)
    close_both(client, server)
    return truth


def many_connections(count: int = 1000, together: int = 50) -> Truth:
    """Short connections with a small question and answer each, some of them open together."""
    truth = Truth()
    with Listener(backlog=together) as listener:
        for start in range(0, count, together):
            pairs = []
            for number in range(start, min(start + together, count)):
                client = connect(truth, listener.port)
                client.send(payload(10 + number % 90, number))
                pairs.append((client, listener.accept(client.connection)))
            for number, (client, server) in enumerate(pairs, start):
                server.read_exactly(client.out.count)
                server.send(payload(20 + number % 70, number))
                client.read_exactly(server.out.count)
                client.close()
                server.close()
    time.sleep(0.05)
    return truth


def tiny_flood(limit: int = 5000) -> Truth:
    """One-byte packets towards receivers that do not read: the packet count runs out first."""
    truth = Truth()
    for kind in (STREAM, SEQPACKET):
        client, server = pair(truth, kind)
        error = client.send_until_full(b"x", limit)
        truth.notes[f"{client.connection.kind}_error"] = error
        time.sleep(0.1)
        close_both(client, server)
    return truth


def reused_pair(times: int = 3) -> Truth:
    """The same client port connects to the same server port again and again."""
    truth = Truth()
    with Listener() as listener:
        local = listener.port + 10_000
        for number in range(times):
            client = _connect_from(truth, listener.port, local)
            server = listener.accept(client.connection)
            data = payload(100 * (number + 1), number)
            client.send(data)
            server.read_exactly(len(data))
            server.send(data[::-1])
            client.read_exactly(len(data))
            close_both(client, server)
    return truth


def _connect_from(truth: Truth, port: int, local_port: int) -> End:
    """Connect from a given port, waiting until the last connection's end has freed it."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            return connect(truth, port, local_port=local_port)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def dying_server(size: int = 20_000) -> Truth:
    """A server process is killed with data unread; the client sends on and learns of it."""
    truth = Truth()
    with Listener() as listener:
        child = os.fork()
        if child == 0:
            _hold_one(listener)
        try:
            client = connect(truth, listener.port)
            client.send(payload(size))
            client.sleep(0.3)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            client.connection.note("server", "killed")
        time.sleep(0.1)
        truth.notes["send_error"] = client.send_until_full(payload(1000), 3)
        client.close()
        time.sleep(0.05)
    return truth


def _hold_one(listener: Listener) -> None:
    """In a child process: accept one connection and hold it without reading, to be killed."""
    try:
        held = listener.sock.accept()
        time.sleep(TIMEOUT)
        held[0].close()
    finally:
        os._exit(1)


def to_host_cid() -> Truth:
    """A connection on loopback that names the host (CID 2) as its peer."""
    truth = Truth()
    with Listener() as listener:
        client = connect(truth, listener.port, cid=2)
        server = listener.accept(client.connection)
        truth.notes["peer_of_server"] = list(server.sock.getpeername())
        truth.notes["name_of_server"] = list(server.sock.getsockname())
        client.send(payload(500))
        server.read_exactly(500)
        server.send(payload(700))
        client.read_exactly(700)
        close_both(client, server)
    return truth
