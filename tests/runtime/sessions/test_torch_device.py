"""Torch devices by name: what is missing is said, and mostly before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsconv.errors import ProviderError
from dsconv.runtime.sessions.torch_device import build_facts, find_device, import_torch

BROKEN = """
raise RuntimeError(
    "Failed to load the backend extension: torch_npu. You can disable extension auto-loading with "
    "TORCH_DEVICE_BACKEND_AUTOLOAD=0."
)
"""


def test_facts_of_the_build() -> None:
    facts = build_facts()
    assert facts["__version__"] == str(torch.version.__version__)
    assert facts["cuda"] == torch.version.cuda


def test_the_cpu_is_there() -> None:
    assert find_device("cpu") == "cpu"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA here")
def test_missing_devices_are_found_out_without_importing_torch() -> None:
    script = (
        "import sys\n"
        "from dsconv.errors import ProviderError\n"
        "from dsconv.runtime.sessions.torch_device import find_device\n"
        "for name in ('cuda', 'xpu:1', 'npu', 'musa', 'supa'):\n"
        "    try:\n"
        "        find_device(name)\n"
        "    except ProviderError as error:\n"
        "        print(error.message, '|', error.hint)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    *lines, imported = done.stdout.splitlines()
    assert imported == "False"
    assert len(lines) == 5
    assert "built without it" in lines[0]
    assert "torch_npu" in lines[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [("abacus", "knows no such device"), ("cpu:3", "there are 1"), ("mps", "finds no such device")],
)
def test_devices_that_torch_does_not_have(name: str, words: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an mps device")
    with pytest.raises(ProviderError, match=words):
        find_device(name)


def test_a_vendor_extension_that_breaks_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(BROKEN)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProviderError, match="torch_npu") as caught:
        import_torch()
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in caught.value.hint


def test_a_vendor_package_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = 'raise ImportError("libhccl.so: cannot open shared object file")'
    (tmp_path / "torch_npu.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProviderError, match=r"libhccl\.so") as caught:
        find_device("npu")
    assert "CANN" in caught.value.hint
