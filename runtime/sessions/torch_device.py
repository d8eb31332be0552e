"""Devices that torch computes on, built in or brought by a vendor's package, and what is missing.

What can be told without importing torch (which takes seconds) is told without it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.errors import ProviderError

AUTOLOAD_OFF = "TORCH_DEVICE_BACKEND_AUTOLOAD=0"


@dataclass(frozen=True)
class Backend:
    """A kind of device. builds: names in torch/version.py of which one must be set.

    package: the vendor's, which registers the device with torch (PrivateUse1).
    """

    cure: str
    builds: tuple[str, ...] = ()
    package: str = ""


BACKENDS = {
    "cuda": Backend("install torch's CUDA build (or the vendor's, for ROCm)", ("cuda", "hip")),
    "xpu": Backend("install torch's XPU build", ("xpu",)),
    "npu": Backend(
        "install Ascend's CANN toolkit, source its set_env.sh, then pip install torch-npu of "
        "torch's version",
        package="torch_npu",
    ),
    "musa": Backend("install Moore Threads' MUSA toolkit and torch_musa", package="torch_musa"),
    "supa": Backend("install Biren's SDK and torch_supa", package="torch_supa"),
}


def build_facts() -> Mapping[str, str | None]:
    """The constants of torch/version.py (`__version__`, `cuda`, `hip`, `xpu`), torch not imported.

    Raises:
        ProviderError: torch is not installed.
    """
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise ProviderError("package 'torch' is not installed", "pip install torch")
    text = (Path(found.submodule_search_locations[0]) / "version.py").read_text("utf-8")
    facts: dict[str, str | None] = {}
    for line in ast.parse(text).body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            facts[target.id] = None if value.value is None else str(value.value)
    return facts


def import_torch() -> Any:
    """The module.

    Raises:
        ProviderError: it is not installed, or a vendor's extension keeps it from loading.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ProviderError("package 'torch' is not installed", "pip install torch") from error
    except RuntimeError as error:  # torch loads vendors' extensions and fails with them
        reason = " ".join(str(error).split())
        if "backend extension" not in reason:
            raise
        raise ProviderError(
            f"torch cannot be imported: {reason}",
            f"set up that device's toolkit (Ascend: source set_env.sh), or set {AUTOLOAD_OFF}",
        ) from error


def find_device(name: str) -> str:
    """`KIND[:INDEX]` -> the same, once torch has that device.

    Raises:
        ProviderError: torch, the vendor's package or the device is not there.
    """
    kind, _, index = name.partition(":")
    backend = BACKENDS.get(kind, Backend("install the package that brings this device to torch"))
    facts = build_facts()
    version = facts.get("__version__")
    if backend.builds and not any(facts.get(build) for build in backend.builds):
        raise ProviderError(
            f"provider 'torch:{name}': the installed torch {version} is built without it",
            backend.cure,
        )
    if backend.package and importlib.util.find_spec(backend.package) is None:
        raise ProviderError(
            f"provider 'torch:{name}': package {backend.package!r} is not installed", backend.cure
        )
    torch = import_torch()
    if backend.package:
        _import_vendor(name, backend)
    try:
        torch.device(kind)
    except RuntimeError as error:
        raise ProviderError(
            f"provider 'torch:{name}': torch {version} knows no such device", backend.cure
        ) from error
    count = _device_count(torch, kind)
    if count == 0:
        raise ProviderError(
            f"provider 'torch:{name}': torch {version} finds no such device", backend.cure
        )
    if index and not (index.isdecimal() and int(index) < count):
        raise ProviderError(
            f"provider 'torch:{name}': there are {count} such devices",
            f"use a number from 0 to {count - 1}",
        )
    return name


def _import_vendor(name: str, backend: Backend) -> None:
    try:
        importlib.import_module(backend.package)
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ProviderError(
            f"provider 'torch:{name}': {backend.package} cannot be imported: {reason}",
            backend.cure,
        ) from error


def _device_count(torch: Any, kind: str) -> int:
    """A backend's own module answers; every backend has one of its name."""
    if kind in ("cpu", "meta"):
        return 1
    module = getattr(torch, kind, None)
    if module is None or not module.is_available():
        return 0
    return int(module.device_count())
