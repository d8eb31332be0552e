"""Inputs with something wrong in them, made from a random generator and from what is right.

Fields are changed rather than bytes: most changed bytes end in a parser's first check.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any

LONG = "x" * 2**20
DEEP = 5000  # levels
RAW = "\ue000"  # in a string: what follows is written without quotes
ODD_VALUES: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        7,
        64,
        255,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
    ),
    *(0.0, -0.5, 1e-300, 1e300, float("nan"), float("inf"), f"{RAW}1e400", f"{RAW}-1e400"),
    *(True, False, None, "", "a", "0", "-1", "\0", "../x", "/dev/zero", "é\ud800", "{{", "a b"),
    *([], {}, [[]], [0], [None], ["a"], {"a": 1}, {"": ""}, [1, 2, 3], [[0, 0]] * 3),
)
RAW_STRING = re.compile(r'"\\ue000((?:[^"\\]|\\.)*)"')
INTERESTING_BYTES = (
    0,
    1,
    9,
    10,
    34,
    39,
    44,
    45,
    46,
    48,
    57,
    58,
    61,
    91,
    93,
    101,
    123,
    125,
    128,
    255,
)

Container = MutableMapping[str, Any] | MutableSequence[Any]


def damaged_bytes(rng: random.Random, data: bytes, head: int | None = None) -> bytes:
    """One to three changed, removed, doubled or moved pieces; nine of ten in the first `head`."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not result:
            break
        limit = len(result) if head is None or rng.random() < 0.1 else min(head, len(result))
        place, kind = rng.randrange(max(1, limit)), rng.randrange(7)
        if kind == 0:
            result[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[place] = rng.choice(INTERESTING_BYTES)
        elif kind == 2:
            result[place] = rng.randrange(256)
        elif kind == 3:
            del result[place : place + rng.randint(1, 8)]
        elif kind == 4:
            result[place:place] = result[place : place + rng.randint(1, 32)]
        elif kind == 5:
            other, length = rng.randrange(max(1, limit)), rng.randint(1, 16)
            result[place : place + length] = result[other : other + length]
        else:
            del result[rng.randrange(len(result)) :]
    return bytes(result)


def containers(value: Any) -> Iterator[Container]:
    """Every object and list in a JSON value that has something in it."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, (dict, list)) and item:
            yield item
            pending.extend(item.values() if isinstance(item, dict) else item)


def mutate_json(rng: random.Random, text: str, changes: int = 3) -> bytes:
    """The JSON text with one to `changes` fields that are wrong, or with damaged bytes."""
    if rng.random() < 0.1:
        return damaged_bytes(rng, text.encode())
    content = json.loads(text)
    for _ in range(rng.randint(1, changes)):
        places = list(containers(content))
        if not places:
            break
        content = _changed(rng, content, rng.choice(places))
    return encoded(content)


def encoded(content: Any) -> bytes:
    """JSON text of a value that may hold RAW strings, NaN and half surrogates."""
    return RAW_STRING.sub(_raw, json.dumps(content)).encode()


def _raw(match: re.Match[str]) -> str:
    return str(json.loads(f'"{match[1]}"'))


def _changed(rng: random.Random, content: Any, place: Container) -> Any:
    """Change one entry of `place`, which lies in `content` -> the content."""
    key: Any = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    assert isinstance(place, (dict, list))
    kind = rng.random()
    if kind < 0.45:
        place[key] = odd_value(rng)
    elif kind < 0.55:
        del place[key]
    elif kind < 0.65:
        place[key] = _near(rng, place[key])
    elif kind < 0.72 and isinstance(place, dict):
        twice = json.dumps(key) + ": " + json.dumps(odd_value(rng, plain=True)) + ", "
        place[f"{RAW}{twice}{json.dumps(key)}"] = place.pop(key)
    elif kind < 0.79 and isinstance(place, dict):
        place[rng.choice(["", "x", key + "x", key.upper(), "../" + key])] = place.pop(key)
    elif kind < 0.86 and isinstance(place, list):
        place.insert(key, json.loads(json.dumps(place[rng.randrange(len(place))])))
    elif kind < 0.93:
        others = list(containers(content))
        other = rng.choice(others)
        values = list(other.values()) if isinstance(other, dict) else list(other)
        place[key] = json.loads(json.dumps(rng.choice(values)))
    elif kind < 0.97:
        place[key] = [place[key]]
    elif kind < 0.98:
        place[key] = f"{RAW}" + rng.choice(["[", '{"a":']) * DEEP
    elif kind < 0.99:
        level = rng.choice([30, 90, 120, 200])
        place[key] = RAW + "[" * level + "]" * level
    else:
        place[key] = LONG
    return content


def odd_value(rng: random.Random, plain: bool = False) -> Any:
    """A value of some kind; `plain`: without RAW text."""
    value = rng.choice(ODD_VALUES)
    if plain and isinstance(value, str):
        value = value.replace(RAW, "")
    return json.loads(json.dumps(value)) if isinstance(value, (list, dict)) else value


def _near(rng: random.Random, value: Any) -> Any:
    """Something close to what was there."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice(
            [value - 1, value + 1, value * 2, value // 2, -value, float(value), value**3]
        )
    if isinstance(value, float):
        return rng.choice([-value, value * 1e30, value / 1e30, value // 1, value + 1])
    if isinstance(value, str):
        return rng.choice([value[:-1], value + "x", value * 2, value.upper(), [value], value[::-1]])
    if isinstance(value, list):
        return rng.choice([value * 2, value[:-1], value[::-1], [value], value + value[:1]])
    return rng.choice([{}, [value], list(value), {**value, "x": 1}])


def mutate_text(rng: random.Random, text: str, pieces: re.Pattern[str]) -> str:
    """Swap, drop, double or replace whole pieces (words, numbers, marks) of a text."""
    words = pieces.findall(text)
    for _ in range(rng.randint(1, 4)):
        if not words:
            break
        place, kind = rng.randrange(len(words)), rng.randrange(5)
        if kind == 0:
            del words[place]
        elif kind == 1:
            words.insert(place, words[rng.randrange(len(words))])
        elif kind == 2:
            words[place] = words[rng.randrange(len(words))]
        elif kind == 3:
            odd = odd_value(rng, plain=True)
            words[place] = odd if isinstance(odd, str) else json.dumps(odd)
        else:
            words[place] = words[place] * rng.choice([2, 3, 2000 if rng.random() < 0.02 else 2])
    return "".join(words)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A header field, a length, the offsets, the data: or a few bytes."""
    length = int.from_bytes(data[:8], "little")
    text, body = data[8 : 8 + length].decode(), data[8 + length :]
    kind = rng.random()
    if kind < 0.1:
        return damaged_bytes(rng, data, 8 + length)
    if kind < 0.2:
        lie = rng.choice([0, 1, length - 1, length + 1, 99_999_999, 2**31, 2**32, 2**63, 2**64 - 1])
        return lie.to_bytes(8, "little") + data[8:]
    if kind < 0.3:
        body = rng.choice([body[: rng.randrange(len(body) + 1)], body + b"\0", b"", body * 2])
        return data[: 8 + length] + body
    if kind < 0.55:
        text = json.dumps(_moved_tensors(rng, json.loads(text)))
        header = text.encode()
    else:
        header = mutate_json(rng, text)
    header += b" " * (-(8 + len(header)) % 64) if rng.random() < 0.5 else b""
    return len(header).to_bytes(8, "little") + header + body


DTYPE_NAMES = ("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3")
ODD_DTYPES = ("F8_E5M2", "F4", "F8_E8M0", "C64", "U64", "f32", "", "F32 ")


def _moved_tensors(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """Shapes, offsets and types that differ a little, or trade places."""
    names = [name for name in header if name != "__metadata__"]
    entry, other = (header[rng.choice(names)] for _ in range(2))
    kind = rng.randrange(6)
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPE_NAMES + ODD_DTYPES)
    elif kind == 1:
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif kind == 2:
        start, end = entry["data_offsets"]
        delta = rng.choice([-8, -4, -1, 1, 4, 8, 2**40, -(2**40), 2**63])
        entry["data_offsets"] = rng.choice([[start + delta, end + delta], [start, end + delta]])
    elif kind == 3:
        entry["shape"] = rng.choice([entry["shape"][::-1], [*entry["shape"], 1], [2**62, 4], [0]])
    elif kind == 4:
        header[rng.choice(["a\nb", "n" * 513, "x", "\x7f", ""])] = header.pop(rng.choice(names))
    else:
        entry["shape"] = [rng.choice([0, 1, 2, 2**31, 2**40]) for _ in range(rng.randint(0, 9))]
    return header
