"""What all tests share: nobody touches the vsock of the machine (no_vsock.py)."""

from __future__ import annotations

import os

import no_vsock
import pytest

no_vsock.install()
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(no_vsock.CHILD), os.environ.get("PYTHONPATH", "")])
)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if no_vsock.refused:
        what = ", ".join(no_vsock.refused)
        no_vsock.refused.clear()
        pytest.fail(f"{item.name} tried to touch the vsock of this machine: {what}")
