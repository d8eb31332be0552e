"""Where tensors come from: one interface over safetensors folders and GGUF files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import read_json_object, write_json
from dsconv.convert.files.local_files import safe_join
from dsconv.convert.files.safetensors import TensorInfo, read_columns, read_rows, read_tensor_infos
from dsconv.errors import InputError

from .weight_files import INDEX, choose_weight_files, index_of

# Of the layout AscendV1 (see `formats/ascend`): its index, and what tells the types of its tensors.
ASCEND_INDEX = "quant_model_weights.safetensors.index.json"
ASCEND_DESCRIPTION = "quant_model_description.json"
PIECE = 1 << 24  # bytes of a tensor compared at a time


class TensorSource(Protocol):
    """Named tensors, opened lazily: nothing is read before `rows` asks for it."""

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """The safetensors dtype in which an unquantized copy of the tensor is stored."""
        ...

    def storage(self, name: str) -> str:
        """The name of the format in which the file holds the tensor."""
        ...

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor occupies in its own file."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) along the first axis, in a float dtype (or the stored integers)."""
        ...

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        ...


@runtime_checkable
class HashedSource(Protocol):
    """A source whose files need not be here: their hashes are known from elsewhere."""

    def sha256(self) -> Mapping[str, str]:
        """Of every file, by its name."""
        ...


class SafetensorsSource:
    """One or many safetensors files of a folder."""

    def __init__(self, infos: Mapping[str, TensorInfo]) -> None:
        self.infos = infos

    def with_infos(self, infos: Mapping[str, TensorInfo]) -> SafetensorsSource:
        """The same files with other tensors, or other names for them."""
        return SafetensorsSource(infos)

    def names(self) -> Iterable[str]:
        return self.infos.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.infos[name].shape

    def dtype(self, name: str) -> str:
        return self.infos[name].dtype

    def storage(self, name: str) -> str:
        return self.infos[name].dtype

    def nbytes(self, name: str) -> int:
        return self.infos[name].nbytes

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        return read_rows(self.infos[name], start, stop)

    def columns(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Columns [start, stop) of a matrix, as they are stored."""
        return read_columns(self.infos[name], start, stop)

    def files(self) -> list[Path]:
        return sorted({info.path for info in self.infos.values()})


@dataclass(frozen=True)
class OpenedWeights:
    """notes: on files that lie there too, for people."""

    source: SafetensorsSource
    notes: tuple[str, ...] = ()


def open_safetensors_folder(
    folder: Path, index_name: str | None = None, *, has_data: bool = True
) -> OpenedWeights:
    """Open the weights of a folder (see `weight_files.py`).

    Args:
        index_name: of the index, where the layout has one of its own.
        has_data: False where the files are headers with holes behind them.

    Raises:
        InputError: a shard is missing or damaged, or there are no weights.
        UnsupportedError: only an adapter, or pickle files, are there.
    """
    if index_name is not None and (folder / index_name).exists():
        own = _by_index(folder, index_name, read_weight_map(folder / index_name))
        return OpenedWeights(own)
    names = file_names(folder)
    index = index_of(names)
    weight_map = read_weight_map(folder / index) if index else None
    chosen = choose_weight_files(str(folder), names, weight_map)
    if chosen.index is not None and weight_map is not None:
        source = _by_index(folder, chosen.index, weight_map)
    else:
        source = _by_headers([folder / name for name in chosen.files], has_data)
    return OpenedWeights(source, chosen.notes(str(folder)))


def file_names(folder: Path) -> list[str]:
    """Of a folder, and of the folders in it as `folder/name`."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                with suppress(OSError), os.scandir(entry) as below:
                    found += [f"{entry.name}/{item.name}" for item in below]
            else:
                found.append(entry.name)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False for a link that leads to itself, too."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor -> name of its file.

    Raises:
        InputError: the index is damaged, or larger than any in use.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map: missing or empty", "download the index again")
    for count, what, limit in (
        (len(weight_map), "tensors", limits.TENSORS),
        (len(set(map(str, weight_map.values()))), "shards", limits.SHARDS),
    ):
        if count > limit:
            raise InputError(
                f"{index}: {count} {what}, limit {limit}", "this index is damaged or hostile"
            )
    return {name: str(shard) for name, shard in weight_map.items()}


def _by_index(folder: Path, index_name: str, weight_map: Mapping[str, str]) -> SafetensorsSource:
    index = folder / index_name
    infos: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        path = _shard_path(folder, index, shard)
        if not os.path.exists(path):  # Path.exists raises where the name is too long
            raise InputError(
                f"{path}: missing, but {index_name} names it",
                "the download is incomplete; download the checkpoint again",
            )
        for name, info in read_tensor_infos(path).items():
            if weight_map.get(name) == shard:
                infos[name] = info
    for name, shard in weight_map.items():
        if name not in infos:
            raise InputError(
                f"{index}: tensor {name!r} is not in {shard}",
                "index and shards do not belong together; download the checkpoint again",
            )
    return SafetensorsSource(infos)


def _by_headers(paths: Sequence[Path], has_data: bool) -> SafetensorsSource:
    """Without an index the files say themselves what they hold."""
    infos: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_tensor_infos(path).items():
            known = infos.setdefault(name, info)
            if known is not info and not (has_data and _are_same(known, info)):
                raise InputError(
                    f"{path.parent}: tensor {name!r} is in {known.path.name} and in {path.name}, "
                    f"and no {INDEX} says which one is meant",
                    "download the index, or keep only the files of one checkpoint",
                )
    return SafetensorsSource(infos)


def _are_same(one: TensorInfo, other: TensorInfo) -> bool:
    """Compared byte by byte, in pieces."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    rows = one.shape[0] if one.shape else 1
    step = max(1, PIECE // max(1, one.nbytes // max(1, rows)))
    return all(
        read_rows(one, start, min(rows, start + step)).tobytes()
        == read_rows(other, start, min(rows, start + step)).tobytes()
        for start in range(0, rows, step)
    )


def write_index(path: Path, weight_map: Mapping[str, str], tensor_bytes: int) -> None:
    """weight_map: tensor -> file; tensor_bytes: of all tensors, without headers."""
    write_json(path, {"metadata": {"total_size": tensor_bytes}, "weight_map": dict(weight_map)})


def _shard_path(folder: Path, index: Path, shard: str) -> Path:
    """A shard lies beside its index: no folders, nothing that leads out."""
    if not shard.endswith(".safetensors"):
        raise InputError(
            f"{index}: shard name {shard!r} is not a plain .safetensors file name",
            "this index is damaged or hostile",
        )
    return safe_join(folder, shard, str(index))
