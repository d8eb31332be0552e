"""Protobuf messages with wrong fields: the parser takes them, whoever reads them may not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

ODD_NUMBERS = (0, 1, -1, 2, 3, 7, 16, 255, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
ODD_FLOATS = (0.0, -1.0, 1e-38, 3e38, float("nan"), float("inf"))
ODD_TEXTS = (b"", b"x", b"../x", b"/dev/zero", b"\xff\xfe", b"9" * 30, b"-1", b"length", b"offset")


def messages(message: Any) -> Iterator[Any]:
    """The message and all that lie in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if is_repeated(value) else (value,):
                yield from messages(inner)


def is_repeated(value: Any) -> bool:
    return hasattr(value, "append") or hasattr(value, "add")


def mutate_message(rng: random.Random, message: Any, changes: int = 3) -> None:
    """Change one to `changes` fields in place."""
    for _ in range(rng.randint(1, changes)):
        places = [inner for inner in messages(message) if inner.ListFields()]
        if not places:
            return
        place = rng.choice(places)
        if rng.random() < 0.8:
            field, value = rng.choice(place.ListFields())
        else:
            field = rng.choice(place.DESCRIPTOR.fields)
            value = getattr(place, field.name)
        _change(rng, place, field, value)


def _change(rng: random.Random, place: Any, field: Any, value: Any) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        place.ClearField(field.name)
    elif is_repeated(value):
        _change_list(rng, field, value, kind)
    elif field.message_type is not None:
        value.SetInParent()
    else:
        setattr(place, field.name, _odd(rng, field))


def _change_list(rng: random.Random, field: Any, values: Any, kind: int) -> None:
    if values and kind == 1:
        del values[rng.randrange(len(values))]
    elif values and kind == 2:
        values.append(values[rng.randrange(len(values))])
    elif field.message_type is not None:
        if values and kind == 3:
            values[rng.randrange(len(values))].CopyFrom(values[rng.randrange(len(values))])
        else:
            values.add()
    elif values and kind == 3:
        values[rng.randrange(len(values))] = _odd(rng, field)
    else:
        values.append(_odd(rng, field))


def _odd(rng: random.Random, field: Any) -> Any:
    """A value of the field's type."""
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(ODD_FLOATS)
    if field.type == field.TYPE_BYTES:
        return rng.choice(ODD_TEXTS)
    if field.cpp_type == field.CPPTYPE_STRING:
        return rng.choice(ODD_TEXTS).decode("latin-1")
    if field.enum_type is not None:  # a closed enum takes its own numbers only
        return rng.choice(list(field.enum_type.values_by_number))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    numbers = list(ODD_NUMBERS)
    if field.cpp_type in (field.CPPTYPE_INT32,):
        numbers = [number for number in numbers if -(2**31) <= number < 2**31]
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        numbers = [abs(number) for number in numbers if abs(number) < 2**32]
    return rng.choice(numbers)
