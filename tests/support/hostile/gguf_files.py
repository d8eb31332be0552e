"""GGUF files of every type of blocks, and models in several files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf_models import write_gguf

from dsconv.convert.files.json_file import parse_json
from dsconv.convert.formats.gguf.block_types import TYPES
from dsconv.convert.open import open_checkpoint

from .gguf_documents import Document, mutate_gguf
from .subjects import read_all

TOKENS = [*map(chr, range(33, 127)), "Ġ", "ab", "<s>", "</s>"]
HIDDEN, HEADS = 256, 2
MATRICES = (
    *(("token_embd", len(TOKENS)), ("output", len(TOKENS)), ("blk.0.attn_q", HIDDEN)),
    *(("blk.0.attn_k", HIDDEN // HEADS), ("blk.0.attn_v", HIDDEN // HEADS)),
    *(("blk.0.attn_output", HIDDEN), ("blk.0.ffn_gate", 64), ("blk.0.ffn_up", 64)),
)
KEYS = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 2.0,
    "llama.rope.scaling.attn_factor": 1.1,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 2) + [3, 3],
    "tokenizer.ggml.merges": ["a b"],
}
# Types that the package gguf, which writes the files here, knows too.
NUMBERS = sorted(number for number in TYPES if number in set(Type))


def write_model(path: Path, types: Sequence[int]) -> Path:
    """A model of one layer whose matrices are random bytes of the types in turn."""
    rng = np.random.default_rng(len(types) + types[0])
    tensors = {}
    for place, (name, rows) in enumerate(MATRICES):
        number = types[place % len(types)]
        _, elements, size = TYPES[number]
        blocks = rng.integers(0, 256, (rows, HIDDEN // elements * size), np.uint8)
        tensors[f"{name}.weight"] = (blocks, Type(number))
    down = rng.standard_normal((HIDDEN, 64), np.float32)
    tensors["blk.0.ffn_down.weight"] = (down, Type.F32)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        tensors[f"{name}.weight"] = (np.ones(HIDDEN, np.float32), Type.F32)
    return write_gguf(path, "llama", KEYS, tensors)


class GgufTypes:
    """Every type of blocks, in files that say other things of them than is true."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "m.gguf"
        step = len(MATRICES)
        self.documents = [
            Document.read(write_model(self.path, NUMBERS[start : start + step]))
            for start in range(0, len(NUMBERS), step)
        ]

    def prepare(self, rng: random.Random) -> int:
        data = mutate_gguf(rng, rng.choice(self.documents))
        self.path.write_bytes(data)
        return len(data)

    def drive(self) -> None:
        read_all(open_checkpoint(str(self.path)))


class GgufParts:
    """A model in three files: one of them wrong, gone, or in another's place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        small = write_model(folder / "whole.gguf", [8, 20])
        reader = gguf.GGUFReader(small)
        writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=5)
        for key, value in KEYS.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            else:
                writer.add_uint32(key, value)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        small.unlink()
        self.paths = sorted(folder.glob("m-0*.gguf"))
        self.contents = [path.read_bytes() for path in self.paths]
        self.documents = [Document.read(path) for path in self.paths]
        self.opened = self.paths[0]

    def prepare(self, rng: random.Random) -> int:
        contents: list[bytes | None] = list(self.contents)
        place, other = rng.randrange(len(contents)), rng.randrange(len(contents))
        kind = rng.randrange(10)
        if kind == 0:
            contents[place] = None
        elif kind == 1:
            contents[place] = contents[other]
        else:
            contents[place] = mutate_gguf(rng, self.documents[place])
        for path, content in zip(self.paths, contents, strict=True):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        self.opened = rng.choice(self.paths)
        return sum(len(content) for content in contents if content is not None)

    def drive(self) -> None:
        checkpoint = open_checkpoint(str(self.opened))
        read_all(checkpoint)
        parse_json(checkpoint.side_files["tokenizer.json"], "tokenizer.json")
