"""What all tests share: judges, how hard Hypothesis tries, and a guard against the machine's vsock.

``HYPOTHESIS_PROFILE=thorough`` asks for many more examples than a run at every change can afford.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import judges
import no_vsock
import pytest
from hypothesis import settings

Judge = Callable[..., str]

# Machines that test are busy: a deadline would tell of them, not of the code.
settings.register_profile("fast", max_examples=60, deadline=None)
settings.register_profile("thorough", max_examples=3000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

no_vsock.install()
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(no_vsock.CHILD), os.environ.get("PYTHONPATH", "")])
)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if no_vsock.refused:
        what = ", ".join(no_vsock.refused)
        no_vsock.refused.clear()
        pytest.fail(f"{item.name} tried to touch the vsock of this machine: {what}")


def _judge(name: str) -> Judge:
    judges.judge(name)
    return partial(judges.ask, name)


@pytest.fixture(scope="session")
def tshark() -> Judge:
    """Ask tshark: what it prints, given arguments; skips or fails without it (judges.py)."""
    return _judge("tshark")


@pytest.fixture(scope="session")
def capinfos() -> Judge:
    """Ask capinfos."""
    return _judge("capinfos")


@pytest.fixture(scope="session")
def tcpdump() -> Judge:
    """Ask tcpdump."""
    return _judge("tcpdump")
