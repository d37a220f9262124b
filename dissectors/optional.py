"""The one error for libraries that vsockdump uses only where its user asks for them."""

from __future__ import annotations

from vsockdump.errors import VsockdumpError


class MissingLibraryError(VsockdumpError, ImportError):
    """A library this module is written for cannot be loaded; the text says what to install.

    It is an ImportError too, so that ``try: import ... except ImportError`` around it works.
    """

    def __init__(self, library: str, cause: ImportError) -> None:
        super().__init__(
            f'{library} cannot be loaded ({cause}): pip install "vsockdump[{library}]"'
        )
