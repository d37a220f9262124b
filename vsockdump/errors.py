"""The exceptions of vsockdump: one base class, and a subclass where a caller branches.

Bytes of a guest never raise: a packet that cannot be decoded is a row that says so. What raises is
the world around them: files, devices, privileges, and what a user typed.
"""

from __future__ import annotations


class VsockdumpError(Exception):
    """Anything vsockdump reports to its user as one line; the text is that line."""


class SavefileError(VsockdumpError):
    """A savefile that cannot be read on: names file, byte offset and reason.

    Everything before ``offset`` has been delivered when this is raised.
    """

    def __init__(self, file: str, offset: int, reason: str) -> None:
        super().__init__(f"{file}: at byte {offset}: {reason}")
        self.file = file
        self.offset = offset
        self.reason = reason


class CaptureError(VsockdumpError):
    """A live capture that cannot be opened or goes on no longer."""


class DeviceError(VsockdumpError):
    """A vsockmon device that cannot be found, made or removed."""


class FilterError(VsockdumpError):
    """A filter expression that is not one, or that cannot be compiled.

    The text carries the expression with a caret below the place where ``column`` (from 0) points.
    """

    def __init__(self, message: str, *, column: int | None = None) -> None:
        super().__init__(message)
        self.column = column
