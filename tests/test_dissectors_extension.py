from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest


def python(script: str) -> str:
    """What a fresh interpreter prints; scapy's configuration is one for a whole process."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_scapy_finds_the_extension() -> None:
    script = """
from scapy.config import conf
conf.exts.load("vsockdump")
print(conf.l2types.num2layer[271].__name__, conf.exts.exts)
"""
    version = metadata.version("vsockdump")
    assert python(script) == f"VSockMon [<ScapyExt vsockdump {version} (1 specs)>]\n"


@pytest.mark.parametrize("first", ["layers", "extension"])
def test_classes_exist_once(first: str) -> None:
    layers = "import vsockdump.dissectors.layers as layers"
    extension = 'conf.exts.load("vsockdump"); load_contrib("vsock", space)'
    steps = [layers, extension] if first == "layers" else [extension, layers]
    script = f"""
from scapy.config import conf
from scapy.main import load_contrib
space = {{}}
{steps[0]}
{steps[1]}
conf.exts.load("vsockdump")
import scapy.contrib.vsock
for name in layers.__all__:
    assert space[name] is getattr(layers, name) is getattr(scapy.contrib.vsock, name), name
print(sorted(x.__name__ for x in conf.layers if "vsock" in x.__name__.lower()))
"""
    assert python(script) == "['VSockMon', 'VirtioVsock']\n"


@pytest.mark.parametrize("library", ["scapy", "dpkt"])
def test_the_package_loads_without_its_optional_libraries(library: str) -> None:
    loaded = python("import sys, vsockdump, vsockdump.dissectors; print(*sys.modules)").split()
    assert library not in loaded


@pytest.mark.parametrize(
    ("module", "library"), [("layers", "scapy"), ("bulk", "scapy"), ("dpkt_layers", "dpkt")]
)
def test_a_missing_library_is_told(module: str, library: str) -> None:
    script = f"""
import sys
from vsockdump.errors import VsockdumpError
sys.modules["{library}"] = None
try:
    import vsockdump.dissectors.{module}
except VsockdumpError as told:
    assert isinstance(told, ImportError)
    print(told)
"""
    assert f'pip install "vsockdump[{library}]"' in python(script)
