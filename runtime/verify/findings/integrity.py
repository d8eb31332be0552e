"""Is every byte of an artifact still the one that was written?

A folder is checked against its dsconv.json, whose own text has a hash too; a `.dsq` file against
the hashes of its tensors and of its header; a `.gguf` file against the one hash in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dsconv.atomic import MANIFEST
from dsconv.convert.checkpoint.manifest import (
    FORMAT_VERSION,
    SELF_HASH,
    encode_manifest,
    hash_files,
    hash_tensors,
)
from dsconv.convert.files.hashes import HASH_PLACEHOLDER
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.formats.gguf.export import SUFFIX as GGUF_SUFFIX
from dsconv.convert.formats.gguf.seal import is_sealed, seal_is_intact
from dsconv.convert.formats.native.file import open_native_file
from dsconv.convert.formats.native.format import SUFFIX
from dsconv.convert.formats.onnx.graph_source import hash_initializers
from dsconv.convert.formats.onnx.names import DATA_FILE
from dsconv.errors import DsconvError, InputError
from dsconv.runtime.verify.verdict import Finding

CURE = "make the artifact again, or copy it again from where it is whole"
MAX_NAMED_TENSORS = 8
BESIDE = ("README.md", "verdict.json", "report.html")  # what `build` adds to an artifact


def integrity_findings(path: Path, beside: Collection[str] = ()) -> tuple[Finding, ...]:
    """Recompute every hash of a folder that dsconv wrote, a `.dsq` file or a `.gguf` file.

    Args:
        beside: names of files in the folder that may be there though the manifest lacks them: a
            report, a model card.
    """
    if path.suffix == SUFFIX and path.is_file():
        return _file_findings(path)
    if path.suffix == GGUF_SUFFIX and path.is_file():
        return _gguf_findings(path)
    return _folder_findings(path, beside)


def can_be_vouched_for(path: Path) -> bool:
    """Was it written with all the hashes that `integrity_findings` asks for?"""
    try:
        if path.suffix == SUFFIX and path.is_file():
            return bool(open_native_file(path).metadata.header_sha256)
        if path.suffix == GGUF_SUFFIX and path.is_file():
            return is_sealed(path)
        return SELF_HASH in read_json_object(path / MANIFEST)
    except DsconvError:
        return False


def _file_findings(path: Path) -> tuple[Finding, ...]:
    try:
        file = open_native_file(path)
    except InputError as error:
        return (Finding(path.name, f"cannot be read: {error.message}", CURE),)
    found = []
    if not file.metadata.header_sha256:
        found.append(Finding(path.name, "its header has no hash", "export the model again"))
    elif not file.header_is_intact():
        found.append(Finding(path.name, "the header is not what was written", CURE))
    for name in sorted(file.metadata.sha256.keys() - file.tensors.keys()):
        found.append(Finding(name, f"the hash of a tensor that {path.name} lacks", CURE))
    for name in file.damaged_tensors():
        found.append(Finding(name, f"its bytes in {path.name} are not what was written", CURE))
    return tuple(found)


def _gguf_findings(path: Path) -> tuple[Finding, ...]:
    try:
        if seal_is_intact(path):
            return ()
        sealed = is_sealed(path)
    except DsconvError as error:
        return (Finding(path.name, f"cannot be read: {error.message}", CURE),)
    if not sealed:
        return (Finding(path.name, "it has no hash of dsconv", "export the model again"),)
    return (Finding(path.name, "its bytes are not what was written", CURE),)


def _folder_findings(folder: Path, beside: Collection[str]) -> tuple[Finding, ...]:
    try:
        manifest = read_json_object(folder / MANIFEST)
    except InputError as error:
        return (Finding(MANIFEST, f"cannot be read: {error.message}", CURE),)
    problem = _manifest_problem(folder / MANIFEST, manifest)
    if problem:
        return (Finding(MANIFEST, problem, CURE),)
    expected, present = manifest["sha256"], hash_files(folder)
    found = []
    for name in sorted(expected.keys() - present.keys()):
        found.append(Finding(name, f"missing, but {MANIFEST} names it", CURE))
    for name in sorted(present.keys() - expected.keys() - set(beside)):
        hint = "remove it, or find out who put it there"
        found.append(Finding(name, f"{MANIFEST} does not know this file", hint))
    for path in sorted(folder.rglob("*")):
        if not path.is_file() and (path.is_symlink() or not path.is_dir()):
            name = path.relative_to(folder).as_posix()
            found.append(Finding(name, "neither a file nor a folder", "remove it"))
    for name in sorted(expected.keys() & present.keys()):
        if expected[name] != present[name]:
            found += _damage(folder / name, name, manifest["tensors"].get(name, {}))
    return tuple(found)


def _manifest_problem(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """Why the manifest cannot be believed. Its text must be the one form of its content."""
    if manifest.get("format_version") != FORMAT_VERSION or SELF_HASH not in manifest:
        version = manifest.get("format_version")
        return f"format version {version!r} without a hash of its own, expected {FORMAT_VERSION}"
    for key in ("sha256", "tensors"):
        if not isinstance(manifest.get(key), dict):
            return f"{key}: missing"
    if path.read_bytes() != encode_manifest({**manifest, SELF_HASH: HASH_PLACEHOLDER}):
        return "is not what was written"
    return None


def _damage(path: Path, name: str, tensors: Mapping[str, str]) -> list[Finding]:
    """A file that differs: the tensors that do, if that can be told, or else the file."""
    whole = Finding(name, "its bytes are not what was written", CURE)
    if not tensors:
        return [whole]
    try:
        present = hash_initializers(path.parent) if path.name == DATA_FILE else hash_tensors(path)
    except InputError as error:
        return [Finding(name, f"cannot be read: {error.message}", CURE)]
    damaged = [tensor for tensor, digest in tensors.items() if present.get(tensor) != digest]
    found = [
        Finding(tensor, f"its bytes in {name} are not what was written", CURE)
        for tensor in damaged[:MAX_NAMED_TENSORS]
    ]
    if len(damaged) > MAX_NAMED_TENSORS:
        found.append(Finding(name, f"{len(damaged)} tensors in all are damaged", CURE))
    return found or [whole]
