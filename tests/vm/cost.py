"""What a running process has cost so far, by the kernel's own books.

Asked of a process while it runs, because what it costs to start and to end is to be told apart, and
because a peak that is told after its end includes that of the process that started it.
"""

from __future__ import annotations

import resource
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """CPU seconds of all threads of a process that still run, user and system."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def peak_mib(pid: int) -> float:
    """Most memory that was resident at once, in MiB, a mapped packet ring included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended")


def children_seconds() -> float:
    """CPU seconds of all children of this process that have ended, user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
