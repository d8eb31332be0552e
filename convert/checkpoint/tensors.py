"""Where tensors come from: one interface over safetensors folders and GGUF files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import read_json_object, write_json
from dsconv.convert.files.local_files import safe_join
from dsconv.convert.files.safetensors import TensorInfo, read_columns, read_rows, read_tensor_infos
from dsconv.errors import InputError, UnsupportedError

INDEX = "model.safetensors.index.json"
# Of the layout AscendV1 (see `formats/ascend`): its index, and what tells the types of its tensors.
ASCEND_INDEX = "quant_model_weights.safetensors.index.json"
ASCEND_DESCRIPTION = "quant_model_description.json"
# Formats that run code when they are opened, or (.npz) may.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npz", ".npy")


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


def open_safetensors_folder(folder: Path, index_name: str = INDEX) -> SafetensorsSource:
    """Open the shards that the index names, or the one file when there is no index.

    Raises:
        InputError: a shard is missing or damaged, or there are no weights.
        UnsupportedError: only pickle files are there.
    """
    index = folder / index_name
    if not index.exists():
        candidates = sorted(folder.glob("*.safetensors"))
        if len(candidates) == 1:
            return SafetensorsSource(read_tensor_infos(candidates[0]))
        raise _no_weights(folder, candidates)
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map: missing or empty", "download the index again")
    infos: dict[str, TensorInfo] = {}
    shards = sorted(set(map(str, weight_map.values())))
    for count, what, limit in (
        (len(weight_map), "tensors", limits.TENSORS),
        (len(shards), "shards", limits.SHARDS),
    ):
        if count > limit:
            raise InputError(
                f"{index}: {count} {what}, limit {limit}", "this index is damaged or hostile"
            )
    for shard in shards:
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


def _no_weights(folder: Path, candidates: list[Path]) -> Exception:
    pickles = sorted(path.name for suffix in PICKLE_SUFFIXES for path in folder.glob(f"*{suffix}"))
    if candidates:
        return InputError(
            f"{folder}: {len(candidates)} safetensors files but no {INDEX}",
            "download the index that belongs to them",
        )
    if pickles:
        return UnsupportedError(
            f"{folder}: only pickle weights ({pickles[0]}), which can run code when opened",
            "use the model's safetensors files, or convert it where you trust it",
        )
    return InputError(f"{folder}: no .safetensors files", "check the folder, or download the model")
