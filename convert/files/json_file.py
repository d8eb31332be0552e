"""Strict JSON and typed access to it: every failure names the file and the key."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsconv.errors import InputError

from . import limits
from .impostors import HEAD_BYTES, impostor
from .local_files import read_limited

CONTAINERS = (dict, list)  # of these very types is what json makes


@contextmanager
def many_objects() -> Iterator[None]:
    """While hundreds of thousands of objects are made, none of which is garbage: looking for
    garbage again and again would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def write_json(path: Path, content: object) -> None:
    """Into a scratch folder: indented text, keys in the order given."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} appears twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_json(text: str | bytes, where: str, *, escaped_bytes: bool = False) -> Any:
    """Parse JSON text, refusing duplicate keys, NaN, Infinity, deep nesting, broken Unicode.

    escaped_bytes: strings may hold bytes that are no UTF-8, as Python's surrogateescape writes
    them.

    Raises:
        InputError: naming `where` and the reason.
    """
    try:
        data = json.loads(
            text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
        _refuse_deep(data)
        _refuse_surrogates(text, data, "surrogateescape" if escaped_bytes else "strict")
    except (ValueError, RecursionError) as error:
        raise _not_json(text, where, error) from error
    return data


def _not_json(text: str | bytes, where: str, error: Exception) -> InputError:
    head = text[:HEAD_BYTES]
    found = impostor(head if isinstance(head, bytes) else head.encode(errors="replace"), len(text))
    if found is not None:
        return InputError(f"{where}: {found.what}", found.hint)
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return InputError(
        f"{where}: not valid JSON: {reason}",
        "correct the file, or download it again: it may be cut short",
    )


def _refuse_deep(data: Any) -> None:
    """Whoever walks through the data, or shows it, must not run out of stack."""
    level = [data] if type(data) in CONTAINERS else []
    for _ in range(limits.JSON_DEPTH):
        if not level:
            return
        level = [
            item
            for outer in level
            for item in (outer.values() if type(outer) is dict else outer)
            if type(item) in CONTAINERS
        ]
    if not level:
        return
    raise ValueError(f"nested too deeply: limit {limits.JSON_DEPTH} levels")


def _refuse_surrogates(text: str | bytes, data: Any, errors: str) -> None:
    """Half a pair of \\ud800 … \\udfff can never be written to a file again."""
    escape = b"\\ud" if isinstance(text, bytes) else "\\ud"
    if escape in text.lower():  # type: ignore[operator]
        json.dumps(data, ensure_ascii=False).encode("utf-8", errors)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        InputError: missing, unreadable, too large, malformed, or not an object.
    """
    data = parse_json(read_limited(path, limits.JSON_BYTES), str(path))
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: the top level is {type(data).__name__}, expected an object",
            "check that this is the file it claims to be",
        )
    return data


class ConfigReader:
    """Typed getters over one JSON object; each fails with the file and the key it was asked for."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def fail(self, key: str, problem: str) -> InputError:
        return InputError(
            f"{self.where}: {key}: {problem}", "compare with the model's original file"
        )

    def has(self, key: str) -> bool:
        """Present and not null."""
        return self.data.get(key) is not None

    def _required(self, key: str) -> Any:
        if not self.has(key):
            raise self.fail(key, "missing")
        return self.data[key]

    def integer(
        self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        value = default if default is not None and not self.has(key) else self._required(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"{value!r} is not an integer")
        if not low <= value <= high:
            raise self.fail(key, f"{value} is outside {low}..{high}")
        return value

    def number(
        self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12
    ) -> float:
        value = default if default is not None and not self.has(key) else self._required(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(key, f"{value!r} is not a number")
        if not low <= value <= high:  # NaN and infinity fail too
            raise self.fail(key, f"{value} is outside {low:g}..{high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.data[key] if self.has(key) else default
        if not isinstance(value, bool):
            raise self.fail(key, f"{value!r} is not true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        value = default if default is not None and not self.has(key) else self._required(key)
        if not isinstance(value, str):
            raise self.fail(key, f"{value!r} is not a string")
        return value

    def child(self, key: str) -> ConfigReader | None:
        """The object under `key`, or None when absent or null."""
        if not self.has(key):
            return None
        value = self.data[key]
        if not isinstance(value, dict):
            raise self.fail(key, f"{value!r} is not an object")
        return ConfigReader(value, f"{self.where}: {key}")

    def children(self, key: str) -> list[ConfigReader]:
        """The objects of the list under `key`."""
        value = self._required(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.fail(key, f"{value!r} is not a list of objects")
        return [ConfigReader(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(value)]

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id, a list of ids, or nothing: `eos_token_id` comes in all three forms."""
        if not self.has(key):
            return ()
        value = self.data[key]
        ids = value if isinstance(value, list) else [value]
        for item in ids:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**31:
                raise self.fail(key, f"{item!r} is not a token id")
        return tuple(ids)
