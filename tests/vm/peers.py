"""Both ends of a vsock connection in one process, with everything they do written down.

Connecting needs no second thread: the kernel answers a REQUEST for a listening socket by
itself. What can block on the other end (a large transfer) runs under `background`.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections.abc import Callable
from functools import cache

from . import guard
from .truth import Connection, Direction, Truth

LOCAL = 1
ANY = 0xFFFFFFFF
STREAM = socket.SOCK_STREAM
SEQPACKET = socket.SOCK_SEQPACKET
SO_VM_SOCKETS_BUFFER_SIZE = 0
SO_VM_SOCKETS_BUFFER_MIN_SIZE = 1
SO_VM_SOCKETS_BUFFER_MAX_SIZE = 2
TIMEOUT = 60.0
"""Seconds after which a blocked end gives up: a failure, never a result."""

CLOSE_SECONDS = 8.5
"""The kernel waits 8 s for the answer to a close."""
_NAMES = {STREAM: "STREAM", SEQPACKET: "SEQPACKET"}
_ports = itertools.count(20000)


@cache
def _block() -> bytes:
    return random.Random(1).randbytes(4 << 20)


def payload(size: int, seed: int = 1) -> bytes:
    """`size` bytes (up to 4 MiB) that are the same in every run and do not repeat."""
    start = seed * 7919 % (len(_block()) - size + 1)
    return _block()[start : start + size]


def set_buffer(sock: socket.socket, size: int) -> None:
    """Make `size` the receive buffer a vsock socket advertises (buf_alloc)."""
    for name in (SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE):
        sock.setsockopt(socket.AF_VSOCK, name, size)


class End:
    """One end of a connection; what it sends and reads goes into the record."""

    def __init__(self, who: str, sock: socket.socket, connection: Connection) -> None:
        self.who = who
        self.sock = sock
        self.connection = connection
        client = who == "client"
        there, back = connection.client_to_server, connection.server_to_client
        self.out: Direction = there if client else back
        self.inward: Direction = back if client else there
        sock.settimeout(TIMEOUT)

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        view = memoryview(data)
        while view:
            count = self.sock.send(view)
            self.out.accept(view[:count])
            view = view[count:]

    def send_message(self, data: bytes, flags: int = 0) -> None:
        """Send `data` as one SEQPACKET message (or one send on a STREAM)."""
        # Linux: a send that may not block sends the part of a message that fits and then says that
        # nothing was sent, so that the next attempt puts the whole message behind that part.
        self.sock.settimeout(None)
        try:
            count = self.sock.send(data, flags)
        finally:
            self.sock.settimeout(TIMEOUT)
        if count != len(data):
            raise RuntimeError(f"a message of {len(data)} bytes was cut to {count}")
        self.out.accept(data)
        self.out.flags.append("EOM|EOR" if flags & socket.MSG_EOR else "EOM")

    def send_until_full(self, data: bytes, limit: int) -> str | None:
        """Send `data` again and again without waiting; the error's name, or None at the limit."""
        self.sock.settimeout(0)
        try:
            for _ in range(limit):
                count = self.sock.send(data)
                self.out.accept(data[:count])
        except OSError as error:
            return type(error).__name__
        finally:
            self.sock.settimeout(TIMEOUT)
        return None

    def read(self, size: int) -> bytes:
        """Read once, at most `size` bytes; empty at the end."""
        data = self.sock.recv(size)
        self.inward.deliver(data)
        return data

    def read_exactly(self, size: int) -> None:
        """Read `size` bytes; raises when the stream ends first."""
        while size:
            data = self.read(size)
            if not data:
                raise RuntimeError(f"the stream ended with {size} bytes still to come")
            size -= len(data)

    def read_to_end(self, size: int = 65536) -> None:
        """Read until the peer has shut its sending side."""
        while self.read(size):
            pass

    def sleep(self, seconds: float) -> None:
        """Do nothing for a while."""
        self.connection.sleep(self.who, seconds)

    def shutdown(self, how: int) -> None:
        """Shut one or both directions."""
        self.connection.note(self.who, "shutdown", how=how)
        self.sock.shutdown(how)

    def close(self) -> None:
        """Close this end."""
        self.connection.note(self.who, "close")
        self.sock.close()


class Listener:
    """A listening socket, by default on a port nothing else of this boot uses."""

    def __init__(
        self,
        kind: socket.SocketKind = STREAM,
        *,
        port: int | None = None,
        buffer: int | None = None,
        backlog: int = 128,
    ) -> None:
        self.kind = kind
        self.port = next(_ports) if port is None else port
        self.sock = guard.vsock_socket(kind)
        self.sock.settimeout(TIMEOUT)
        if buffer is not None:
            set_buffer(self.sock, buffer)
        self.sock.bind((ANY, self.port))
        self.sock.listen(backlog)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def accept(self, connection: Connection) -> End:
        """The server's end of `connection`, whose client has connected."""
        sock, peer = self.sock.accept()
        if peer[1] != connection.client[1]:
            raise RuntimeError(f"accepted {peer} while waiting for {connection.client}")
        connection.note("server", "accept")
        return End("server", sock, connection)

    def accept_stranger(self, truth: Truth, cid: int) -> End:
        """The server's end of a connection from another machine, to our CID `cid`."""
        sock, peer = self.sock.accept()
        connection = Connection(_NAMES[self.kind], (peer[0], peer[1]), (cid, self.port))
        connection.connected = True
        truth.connections.append(connection)
        connection.note("server", "accept")
        return End("server", sock, connection)


def connect(
    truth: Truth,
    port: int,
    *,
    kind: socket.SocketKind = STREAM,
    cid: int = LOCAL,
    own_cid: int = LOCAL,
    buffer: int | None = None,
    local_port: int | None = None,
) -> End:
    """Connect to `cid`:`port`; the attempt is recorded whether or not it succeeds.

    `own_cid` is what the peer sees as our CID: 1 on loopback, 2 towards a guest.
    """
    sock = guard.vsock_socket(kind)
    sock.settimeout(TIMEOUT)
    if buffer is not None:
        set_buffer(sock, buffer)
    sock.bind((ANY, ANY if local_port is None else local_port))
    connection = Connection(_NAMES[kind], (own_cid, sock.getsockname()[1]), (cid, port))
    truth.connections.append(connection)
    connection.note("client", "connect")
    try:
        sock.connect((cid, port))
    except OSError as error:
        connection.error = type(error).__name__
        sock.close()
        raise
    connection.connected = True
    return End("client", sock, connection)


def pair(
    truth: Truth,
    kind: socket.SocketKind = STREAM,
    *,
    client_buffer: int | None = None,
    server_buffer: int | None = None,
) -> tuple[End, End]:
    """A fresh connection on loopback: its client's end and its server's."""
    with Listener(kind, buffer=server_buffer) as listener:
        client = connect(truth, listener.port, kind=kind, buffer=client_buffer)
        return client, listener.accept(client.connection)


class Background:
    """A piece of work in a thread of its own; `result` waits and passes its error on."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: Exception | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        # Not hidden: handed to whoever waits for the result.
        except Exception as error:  # noqa: BLE001
            self._error = error

    def result(self, seconds: float = TIMEOUT) -> None:
        """Wait for the end of the work; raises what it raised."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"still running after {seconds} s")
        if self._error is not None:
            raise self._error


def close_both(first: End, second: End) -> None:
    """Close one end, then the other, and leave the kernel the time to say goodbye."""
    first.close()
    second.close()
    time.sleep(0.05)


def wait_for_quiet() -> None:
    """Wait until the kernel has given up on every close of earlier traffic that was not answered.

    It does so with an RST, which a capture that begins or ends now may or may not show.
    """
    time.sleep(CLOSE_SECONDS)
