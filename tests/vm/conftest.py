"""Boots each kernel that is needed once, at the same time, and hands its results to the tests.

A test that takes the fixture `run` runs once for each kernel. What cannot be prepared or does not
boot fails the tests that need it: a live test is never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from . import kernels, suite, vm
from .scenarios import EVERYWHERE, WITH_SUITE


def boot(series: str, folder: Path) -> vm.Run:
    """Boot a kernel and carry out everything the tests look at; results go into `folder`."""
    # Those that belong to one kernel come first: the last of the others change the machine.
    names = [*(WITH_SUITE if series == suite.SERIES else ()), *EVERYWHERE]
    return vm.boot(kernels.kept_kernel(series), names, folder)


@pytest.fixture(scope="session")
def boots(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[vm.Run]]]:
    """The runs that the collected tests ask for, by series, under way at the same time."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = [getattr(item, "callspec", None) for item in items]
    series = {spec.params["run"] for spec in asked if spec and "run" in spec.params}
    if any("suite_run" in item.fixturenames for item in items):
        series.add(suite.SERIES)
    with ThreadPoolExecutor(len(kernels.SERIES)) as threads:
        folders = {name: tmp_path_factory.mktemp(f"linux-{name}-") for name in sorted(series)}
        yield {name: threads.submit(boot, name, folder) for name, folder in folders.items()}


@pytest.fixture(scope="session", params=list(kernels.SERIES))
def run(request: pytest.FixtureRequest, boots: dict[str, Future[vm.Run]]) -> vm.Run:
    """The results of one boot; VMError tells why there are none."""
    return boots[request.param].result()


@pytest.fixture(scope="session")
def suite_run(boots: dict[str, Future[vm.Run]]) -> vm.Run:
    """The results of the kernel that the kernel's own programs are run on."""
    return boots[suite.SERIES].result()
