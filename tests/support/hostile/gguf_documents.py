"""GGUF files in pieces, so that each piece can lie about the others."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsconv.convert.formats.gguf.container import ARRAY, SCALARS, STRING, _Cursor

from .mutations import damaged_bytes

FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
ODD_COUNTS = (0, 1, 2, 3, 255, 2**16, 2**31, 2**32, 2**40, 2**61, 2**63, 2**64 - 1)
ODD_TYPES = (*range(44), 99, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Value:
    """`inner`: the type of an array's items; `count`: what is written as its length."""

    kind: int
    content: Any
    inner: int = 0
    count: int | None = None


@dataclass(frozen=True)
class Tensor:
    name: bytes
    dims: tuple[int, ...]
    kind: int
    offset: int
    rank: int | None = None


@dataclass(frozen=True)
class Document:
    keys: list[tuple[bytes, Value]]
    tensors: list[Tensor]
    data: bytes
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    text_lengths: dict[int, int] = field(default_factory=dict)  # number of the text -> its lie

    @classmethod
    def read(cls, path: Path) -> Document:
        """Take a right file apart."""
        with path.open("rb") as file:
            cursor = _Cursor(file, path)
            cursor.take(8)
            tensor_count, key_count = cursor.integer(8), cursor.integer(8)
            keys = [(cursor.text().encode(), _read_value(cursor)) for _ in range(key_count)]
            tensors = [cursor.tensor() for _ in range(tensor_count)]
            start = -(-cursor.position // 32) * 32
            file.seek(start)
            found = [Tensor(t.name.encode(), t.shape[::-1], t.kind, t.offset) for t in tensors]
            return cls(keys, found, file.read())

    def encode(self) -> bytes:
        parts: list[bytes] = [b"GGUF", struct.pack("<I", self.version)]
        texts = 0

        def text(content: bytes) -> bytes:
            nonlocal texts
            length = self.text_lengths.get(texts, len(content))
            texts += 1
            return struct.pack("<Q", length) + content

        def item(kind: int, content: Any) -> bytes:
            if kind == STRING:
                return text(content if isinstance(content, bytes) else b"")
            try:
                return struct.pack("<" + FORMATS.get(kind, "I"), content)
            except (struct.error, OverflowError):
                return b"\x07" + b"\0" * 7

        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.keys) if self.key_count is None else self.key_count
        parts.append(struct.pack("<QQ", tensor_count, key_count))
        for key, value in self.keys:
            parts += [text(key), struct.pack("<I", value.kind)]
            if value.kind == ARRAY and isinstance(value.content, list):
                count = len(value.content) if value.count is None else value.count
                parts.append(struct.pack("<IQ", value.inner, count))
                parts += [item(value.inner, entry) for entry in value.content]
            else:
                plain = value.content if not isinstance(value.content, list) else 0
                parts.append(item(value.kind, plain))
        for tensor in self.tensors:
            rank = len(tensor.dims) if tensor.rank is None else tensor.rank
            parts += [text(tensor.name), struct.pack("<I", rank)]
            parts += [struct.pack("<Q", dim % 2**64) for dim in tensor.dims]
            parts.append(struct.pack("<IQ", tensor.kind, tensor.offset % 2**64))
        header = b"".join(parts)
        return header + b"\0" * (-len(header) % 32) + self.data


def _read_value(cursor: _Cursor) -> Value:
    kind = cursor.integer(4)
    if kind == ARRAY:
        inner, count = cursor.integer(4), cursor.integer(8)
        return Value(kind, [_item(cursor, inner) for _ in range(count)], inner)
    return Value(kind, _item(cursor, kind))


def _item(cursor: _Cursor, kind: int) -> Any:
    (found,) = cursor.values(kind, 1)
    return found.encode() if kind == STRING else found


def mutate_gguf(rng: random.Random, document: Document) -> bytes:
    """One to three pieces that are wrong."""
    for _ in range(rng.randint(1, 3)):
        document = _changed(rng, document)
    data = document.encode()
    if rng.random() < 0.1:
        data = damaged_bytes(rng, data, len(data) - len(document.data))
    return data


def _changed(rng: random.Random, document: Document) -> Document:
    kind = rng.randrange(12)
    if kind == 0:
        return replace(document, version=rng.choice([0, 1, 2, 3, 4, 2**31, 0x03000000]))
    if kind == 1:
        return replace(document, key_count=rng.choice([*ODD_COUNTS, len(document.keys) + 1]))
    if kind == 2:
        return replace(document, tensor_count=rng.choice([*ODD_COUNTS, len(document.tensors) - 1]))
    if kind == 3:
        lies = {rng.randrange(len(document.keys) * 2): rng.choice(ODD_COUNTS)}
        return replace(document, text_lengths=lies)
    if kind == 4:
        return replace(document, data=document.data[: rng.randrange(len(document.data) + 1)])
    if kind in (5, 6) and document.tensors:
        return replace(document, tensors=_changed_tensors(rng, document.tensors))
    return replace(document, keys=_changed_keys(rng, document.keys))


def _changed_keys(rng: random.Random, keys: list[tuple[bytes, Value]]) -> list[tuple[bytes, Value]]:
    keys = list(keys)
    if not keys:
        return keys
    place = rng.randrange(len(keys))
    name, value = keys[place]
    kind = rng.randrange(8)
    if kind == 0:
        del keys[place]
    elif kind == 1:
        keys.insert(place, keys[rng.randrange(len(keys))])
    elif kind == 2:
        keys[place] = name, keys[rng.randrange(len(keys))][1]
    elif kind == 3:
        keys[place] = rng.choice([b"", b"\xff", b"x" * 70_000, name + b"x", name.upper()]), value
    elif kind == 4:
        keys[place] = name, replace(value, kind=rng.choice([*SCALARS, 9, 13, 99]))
    elif kind == 5 and isinstance(value.content, list):
        keys[place] = name, replace(value, count=rng.choice(ODD_COUNTS))
    elif kind == 6 and isinstance(value.content, list) and value.content:
        items = list(value.content)
        spot = rng.randrange(len(items))
        if rng.random() < 0.5:
            items[spot] = items[rng.randrange(len(items))]
        else:
            del items[spot]
        keys[place] = name, replace(value, content=items)
    else:
        keys[place] = name, _odd_value(rng, value)
    return keys


def _odd_value(rng: random.Random, value: Value) -> Value:
    if value.kind == STRING:
        texts = [b"", b"\xff\xfe", b"llama", b"gpt2", b"yarn", b"linear", b"x" * 2**16, b"default"]
        return replace(value, content=rng.choice(texts))
    if value.kind == ARRAY:
        return replace(value, inner=rng.choice([*SCALARS, 8, 9, 13]))
    if value.kind in (6, 12):
        odd = [0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 1.0]
        return replace(value, content=rng.choice(odd))
    return Value(10, rng.choice([0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**63]))


def _changed_tensors(rng: random.Random, tensors: list[Tensor]) -> list[Tensor]:
    tensors = list(tensors)
    place = rng.randrange(len(tensors))
    tensor = tensors[place]
    kind = rng.randrange(8)
    if kind == 0:
        del tensors[place]
    elif kind == 1:
        tensors.insert(place, tensor)
    elif kind == 2:
        odd = (0, 1, 31, 32, 33, 256, 2**31, 2**32, 2**40, 2**63)
        dims = tuple(rng.choice([dim, rng.choice(odd)]) for dim in tensor.dims)
        tensors[place] = replace(tensor, dims=dims)
    elif kind == 3:
        tensors[place] = replace(tensor, kind=rng.choice(ODD_TYPES))
    elif kind == 4:
        offsets = (0, 1, 31, 32, tensor.offset + 1, 2**31, 2**40, 2**63, 2**64 - 1)
        tensors[place] = replace(tensor, offset=rng.choice(offsets))
    elif kind == 5:
        tensors[place] = replace(tensor, rank=rng.choice([0, 1, 3, 4, 5, 255, 2**31]))
    elif kind == 6:
        names = [b"", b"\xff", b"a\0b", b"n" * 513, b"token_embd.weight", b"rope_freqs.weight"]
        tensors[place] = replace(tensor, name=rng.choice(names))
    else:
        tensors[place] = replace(tensor, dims=tensor.dims[::-1])
    return tensors
