"""What every kind of hostile input has: how it is made wrong, and what reads it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint

from .mutations import mutate_json

SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 264,
    "max_position_embeddings": 64,
}


class Subject(Protocol):
    """One kind of input, with the files around it."""

    def prepare(self, rng: random.Random) -> int:
        """Write the next input -> its size in bytes."""
        ...

    def drive(self) -> None:
        """Read it in all the ways that dsconv has; raises DsconvError or nothing."""
        ...


def read_all(checkpoint: Checkpoint) -> None:
    """Rows of everything, and what the decoder's numbers come to."""
    for name, parameter in checkpoint.parameters.items():
        checkpoint.rows(name, 0, min(4, parameter.shape[0]))
        checkpoint.float_dtype(name)
    checkpoint.decoder.config.rope.frequencies()


def quantized(model: Path, output: Path, **options: Any) -> Path:
    way = QuantizeOptions(method="rtn", threads=1, **options)
    quantize_checkpoint(open_checkpoint(str(model)), way, output)
    return output


class JsonFiles:
    """One JSON file of a folder; `drive` is a function of the folder."""

    def __init__(
        self, path: Path, texts: list[str], drive: Callable[[], None], lines: bool = False
    ) -> None:
        self.path, self.texts, self._drive = path, texts, drive
        self.lines = lines

    def prepare(self, rng: random.Random) -> int:
        text = rng.choice(self.texts)
        if self.lines:
            lines = [line.encode() for line in text.splitlines()]
            place = rng.randrange(len(lines))
            lines[place] = mutate_json(rng, lines[place].decode())
            data = b"\n".join(lines) + b"\n"
        else:
            data = mutate_json(rng, text)
        self.path.write_bytes(data)
        return len(data)

    def drive(self) -> None:
        self._drive()
