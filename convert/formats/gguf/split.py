"""A model in several files, as `llama-gguf-split` and llama.cpp's converters cut it.

The parts are called `NAME-00001-of-00003.gguf` and so on; the first holds the metadata, each says
which it is (`split.no`, from 0) and how many there are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.files.gguf_parts import PART_NAME, part_names
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError

from .container import GgufTensor, read_header

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class GgufModel:
    """Metadata and tensors of one model. `path` is its first file; `files` are all of them."""

    path: Path
    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufModel:
    """Read the header of a file, and of all other parts where it is one of several.

    Raises:
        InputError: a file is damaged, a part is missing, or parts do not belong together.
        UnsupportedError: another version or byte order.
    """
    metadata, tensors = read_header(path)
    count = _integer(metadata, path, COUNT, 1)
    if count <= 1:
        return GgufModel(path, (path,), metadata, tensors)
    files = _parts(path, count)
    whole: dict[str, GgufTensor] = {}
    first: dict[str, Any] = {}
    for number, file in enumerate(files):
        metadata, tensors = read_header(file)
        if number == 0:
            first = metadata
        _check_part(file, metadata, first, number, count)
        for name, tensor in tensors.items():
            if name in whole:
                raise _mixed(file, f"tensor {name!r} is in {whole[name].path.name} too")
            whole[name] = tensor
    expected = _integer(first, files[0], TENSORS, len(whole))
    if expected != len(whole):
        raise _mixed(files[0], f"{TENSORS} is {expected}, the parts hold {len(whole)}")
    return GgufModel(files[0], tuple(files), first, whole)


def _parts(path: Path, count: int) -> list[Path]:
    names = part_names(path.name)
    if len(names) != count:
        match = PART_NAME.fullmatch(path.name)
        stem = match["name"] if match else path.stem
        raise InputError(
            f"{path}: one of {count} parts ({COUNT}), which its name does not say",
            f"call it as it was published, {stem}-00001-of-{count:05}.gguf and so on, beside the "
            "other parts",
        )
    files = [path.with_name(name) for name in names]
    missing = [file.name for file in files if not os.path.isfile(file)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{path}: one of {count} parts; {missing[0]}{more} is not beside it",
            "download all parts into one folder",
        )
    return files


def _check_part(
    file: Path, metadata: dict[str, Any], first: dict[str, Any], number: int, count: int
) -> None:
    """A part says itself which it is; only the first has an architecture, or all have the same."""
    if (found := _integer(metadata, file, COUNT, 0)) != count:
        raise _mixed(file, f"{COUNT} is {found}, of another part {count}")
    if (found := _integer(metadata, file, NUMBER, -1)) != number:
        raise _mixed(file, f"{NUMBER} is {found}, by its name it is {number}")
    for key in (TENSORS, ARCHITECTURE):
        if key in metadata and metadata[key] != first.get(key, metadata[key]):
            raise _mixed(file, f"{key} is {metadata[key]!r}, of the first part {first[key]!r}")


def _integer(metadata: dict[str, Any], path: Path, key: str, default: int) -> int:
    return ConfigReader(metadata, str(path)).integer(key, default, low=-1)


def _mixed(file: Path, problem: str) -> InputError:
    return InputError(
        f"{file}: {problem}",
        "these parts are not of one model; download all parts again, into an empty folder",
    )
