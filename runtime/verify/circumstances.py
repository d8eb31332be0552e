"""Where the figures of a verdict come from: files by their hash, versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from dsconv.atomic import MANIFEST
from dsconv.convert.files.hashes import FileHashes, artifact_files, combined
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.formats.onnx.names import NARROWEST_BITS
from dsconv.convert.inspect.description import Description
from dsconv.errors import InputError
from dsconv.runtime.sessions.providers import FAMILY, PROVIDERS

from .comparison import Comparison
from .reference import Reference
from .reference_cache import tokens_hash
from .verdict import INT8_INPUTS, Circumstances

PLUGINS = tuple(p.wheel for p in PROVIDERS.values() if p.plugin and p.wheel not in FAMILY)
PACKAGES = ("dsconv", "numpy", *FAMILY, *PLUGINS, "safetensors", "tokenizers", "torch")
BUILT_IN = "built-in"


def circumstances_of(
    comparison: Comparison, text: str, text_name: str | None, hashes: FileHashes
) -> Circumstances:
    """Hash everything and note the rest.

    Args:
        text: that the windows are cut from.
        text_name: None for the built-in text.

    Raises:
        InputError: a file cannot be read.
    """
    return Circumstances(
        comparison.path,
        _artifact_hashes(comparison.place, hashes),
        comparison.reference.name,
        combined(weight_hashes(comparison.reference, hashes)),
        text_name or BUILT_IN,
        hashlib.sha256(text.encode()).hexdigest(),
        comparison.artifact.runtime,
        comparison.artifact.provider,
        machine(),
        comparison.threads,
        versions(),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tokens_hash(comparison.windows),
        max(map(len, comparison.windows)),
    )


def narrowest_bits(path: str, artifact: Description) -> float:
    """Bits per weight, scales included, of the artifact's matrix that is stored in the fewest, or
    was before an export widened it."""
    matrices = [row for row in artifact.tensors if len(row.shape) == 2]
    stored = min(8 * row.size_bytes / (row.shape[0] * row.shape[1]) for row in matrices)
    before = _manifest_part(path, "facts").get(NARROWEST_BITS)
    return min(stored, before) if isinstance(before, float) and before > 0 else stored


def method_of(path: str, artifact: Description) -> str:
    """How it was rounded: by the weights where inputs are rounded too, else by the manifest of a
    checkpoint of dsconv; empty where that says nothing."""
    if any(row.rounds_inputs for row in artifact.tensors):
        return INT8_INPUTS
    method = _manifest_part(path, "recipe").get("method")
    return method if isinstance(method, str) else ""


def _manifest_part(path: str, key: str) -> Mapping[str, object]:
    """Empty where there is no manifest that has it."""
    try:
        part = read_json_object(Path(path).expanduser() / MANIFEST).get(key)
    except InputError:
        return {}
    return part if isinstance(part, dict) else {}


def weight_hashes(reference: Reference, hashes: FileHashes) -> dict[str, str]:
    """Name -> sha256 of the files that decide over the reference's predictions."""
    return {file.name: hashes.sha256(file) for file in reference.files}


def _artifact_hashes(path: Path, hashes: FileHashes) -> Mapping[str, str]:
    """Empty for a model of the hub, which is named by its revision."""
    if not path.exists():
        return {}
    return hashes.of_files(artifact_files(path), path.parent if path.is_file() else path)


def machine() -> str:
    """Processor, cores that may be used, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    """The model's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def versions() -> dict[str, str]:
    """Of the packages that take part, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
