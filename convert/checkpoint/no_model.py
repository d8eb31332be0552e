"""What people point at in place of a model's folder, said as what it is."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from pathlib import Path

from dsconv.convert.files.impostors import HEAD_BYTES, impostor
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.files.local_files import open_regular
from dsconv.errors import DsconvError, InputError, UnsupportedError

from .checkpoint import CONFIG
from .weight_files import ADAPTER_CONFIG, MERGE_FIRST, PICKLE_SUFFIXES, SUFFIX

HUB_FOLDER, SNAPSHOTS = "models--", "snapshots"  # of the hub's cache


def refuse_folder_without_config(folder: Path) -> None:
    """
    Raises:
        UnsupportedError: an adapter, or weights in a layout without config.json.
        InputError: anything else without config.json.
    """
    if os.path.lexists(folder / CONFIG):
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(
            f"{folder}: cannot read: {error.strerror}", "check the path and its permissions"
        ) from error
    if ADAPTER_CONFIG in names or any(name.startswith("adapter_model.") for name in names):
        raise _adapter(folder, names)
    problem = f"{folder}: no {CONFIG}"
    snapshot = _snapshot(folder, names)
    if snapshot is not None:
        raise InputError(f"{problem}: a folder of the hub's cache", f"use {snapshot}")
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        raise InputError(f"{problem}, but {len(ggufs)} GGUF", f"use {folder / ggufs[0]}")
    if "params.json" in names:
        raise UnsupportedError(
            f"{problem}, but params.json: the layout of the model's makers",
            "download the model in the layout of the Hugging Face hub",
        )
    below = [name for name in names if os.path.isfile(folder / name / CONFIG)]
    if below:
        raise InputError(f"{problem}, but one in {below[0]}", f"use {folder / below[0]}")
    if not names:
        raise InputError(f"{folder}: an empty folder", "check the path, or download the model")
    raise InputError(
        problem, "use the folder that holds config.json beside the weights, or download it again"
    )


def _adapter(folder: Path, names: list[str]) -> UnsupportedError:
    """A LoRA and the like: a difference to a model, and no model."""
    kind, base = "an adapter", None
    if ADAPTER_CONFIG in names:
        with suppress(DsconvError):
            config = read_json_object(folder / ADAPTER_CONFIG)
            kind = f"a {config['peft_type']} adapter" if config.get("peft_type") else kind
            base = config.get("base_model_name_or_path")
    of_base = f" of {base!r}" if isinstance(base, str) and base else ""
    return UnsupportedError(f"{folder}: holds {kind}{of_base} and no model", MERGE_FIRST)


def _snapshot(folder: Path, names: list[str]) -> Path | None:
    """The newest snapshot of a folder `models--ORG--NAME`, or of its folder `snapshots`."""
    snapshots = folder / SNAPSHOTS if SNAPSHOTS in names else folder
    if not snapshots.parent.name.startswith(HUB_FOLDER) or snapshots.name != SNAPSHOTS:
        return None
    with suppress(OSError):
        commit = (snapshots.parent / "refs" / "main").read_text("ascii").strip()
        if commit and (snapshots / commit).is_dir():
            return snapshots / commit
    with suppress(OSError):
        found = [path for path in snapshots.iterdir() if path.is_dir()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    return None


def refuse_file(path: Path) -> None:
    """
    Raises:
        UnsupportedError, InputError: a file that is no GGUF, by what it is.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsupportedError(
            f"{path}: pickle files can run code when opened and are refused",
            "use the model's safetensors files",
        )
    try:
        with open_regular(path) as file:
            head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}", "check the path") from error
    if head.startswith(b"GGUF"):
        return
    beside = path.absolute().parent
    if head[8:9] == b"{" or path.name == CONFIG:
        raise InputError(f"{path}: one file of a model", f"use its folder: {beside}")
    found = impostor(head, size)
    if found is not None:
        what = "a zip archive" if zipfile.is_zipfile(path) else found.what
        raise InputError(f"{path}: {what}", found.hint)
    if path.suffix == SUFFIX:
        raise InputError(f"{path}: not a safetensors file", "download it again")
    raise InputError(
        f"{path}: neither a folder nor a GGUF file",
        "use the folder that holds config.json, or a .gguf file",
    )
