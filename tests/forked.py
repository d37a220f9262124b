"""Run something in a child process, where it can give up what it will not get back."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any


def forked(function: Callable[[], Any]) -> Any:
    """What ``function`` returns in a forked child (as JSON can carry it).

    Its exceptions come back as ``["ClassName", "text"]``.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            try:
                answer = function()
            except Exception as error:  # noqa: BLE001 - all of it is the answer
                answer = [type(error).__name__, str(error)]
            theirs.sendall(json.dumps(answer).encode())
        finally:
            os._exit(0)
    theirs.close()
    with ours, ours.makefile() as channel:
        said = channel.read()
    os.waitpid(child, 0)
    return json.loads(said)
