"""Loaded by every Python that a test starts: it is watched as the tests themselves are."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, _TESTS)
try:
    import no_vsock
finally:
    sys.path.remove(_TESTS)
no_vsock.install()
