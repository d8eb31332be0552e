"""A checkpoint of which only config.json is known: enough to plan with, nothing to read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.families.inventory import parameters_of
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.files.safetensors import DTYPES
from dsconv.convert.open import open_checkpoint

from .families import read_family
from .hub.model_name import looks_like_hub_name, parse_reference
from .hub.pull import config_folder

STORED_AS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class AnnouncedSource:
    """Names and shapes of tensors that are not there."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        self._shapes = shapes
        self._dtype = dtype

    def names(self) -> Iterable[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        return self._dtype

    def storage(self, name: str) -> str:
        return self._dtype

    def nbytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * DTYPES[self._dtype].itemsize

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        raise RuntimeError(f"{name}: only its shape is known")

    def files(self) -> list[Path]:
        return []


def is_lone_config(folder: Path) -> bool:
    """A config.json without any weights beside it."""
    return (
        os.path.isdir(folder)
        and (folder / CONFIG).is_file()
        and not any(
            path.suffix in (".safetensors", ".onnx", ".bin", ".pt", ".pth")
            for path in folder.iterdir()
        )
        and not any(folder.glob("*.index.json"))
    )


def open_announced(folder: Path) -> Checkpoint:
    """What the config.json of `folder` announces, in the dtype that it names."""
    config = read_json_object(folder / CONFIG)
    reader = ConfigReader(config, str(folder / CONFIG))
    decoder = read_family(reader)
    dtype = reader.string("torch_dtype", reader.string("dtype", "bfloat16"))
    shapes = {parameter.name: parameter.shape for parameter in parameters_of(decoder)}
    source = AnnouncedSource(shapes, STORED_AS.get(dtype, "BF16"))
    return Checkpoint(folder, config, decoder, source, {})


def open_for_planning(model: str) -> Checkpoint:
    """Open a model without reading weights: of one of the hub, only config.json is fetched.

    Raises:
        InputError, UnsupportedError, DownloadError: as when opening it.
    """
    path = Path(model).expanduser()
    if is_lone_config(path):
        return open_announced(path)
    if os.path.exists(path) or not looks_like_hub_name(model) or parse_reference(model).is_gguf:
        return open_checkpoint(model)
    return open_announced(config_folder(model))
