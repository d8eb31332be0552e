"""Keys of a quantization_config: those that are used, that change nothing here, and the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError

FROM_THE_ORIGINAL = "start from the unquantized checkpoint"
MANY = 5  # names that a note lists


def key_names(text: str) -> frozenset[str]:
    """Of a text with blanks between them."""
    return frozenset(text.split())


def refuse_others(reader: ConfigReader, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises UnsupportedError: a key has a value that changes the weights and is not read."""
    for key, values in allowed.items():
        value = reader.data.get(key)
        if value is not None and not any(type(value) is type(v) and value == v for v in values):
            words = ", ".join(map(repr, values)) or "absent"
            raise UnsupportedError(
                f"{reader.where}: {key} = {value!r} is not supported",
                f"supported: {words}; or {FROM_THE_ORIGINAL}",
            )


def unknown_keys(reader: ConfigReader, known: Collection[str]) -> tuple[str, ...]:
    """A note that names the keys nobody here has heard of, where they are set."""
    found = sorted(
        key
        for key, value in reader.data.items()
        if key not in known and value not in (None, False, [], {}, "")
    )
    if not found:
        return ()
    more = f" and {len(found) - MANY} more" if len(found) > MANY else ""
    names = ", ".join(key[:60] for key in found[:MANY])
    return (f"{reader.where}: not known, and not used: {names}{more}",)


def names(reader: ConfigReader, *keys: str) -> tuple[str, ...]:
    """The lists of module names under these keys, one after another.

    Raises:
        InputError: not lists of strings.
    """
    found: list[str] = []
    for key in keys:
        value = reader.data.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise reader.fail(key, "not a list of strings")
        found += value
    return tuple(found)


def is_listed(module: str, entries: Iterable[str]) -> bool:
    """Does a list name the module, by its path or by whole parts of it?"""
    return any(f".{entry.strip('.')}." in f".{module}." for entry in entries if entry.strip("."))


def group_size(reader: ConfigReader, key: str, default: int | None = None) -> int:
    """-1 is the whole row. Raises InputError: no size of a group."""
    size = reader.integer(key, default, low=-1)
    if size == 0:
        raise reader.fail(key, "0 weights to a group")
    return size
