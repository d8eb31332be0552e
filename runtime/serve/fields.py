"""Typed access to the body of a request: what is not asked for is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .problems import Problem

SHOWN = 60  # characters of a wrong value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


class Fields:
    """An object of the request; null is the same as absent, as OpenAI's clients send it.

    place: in front of the names in messages, such as `messages[3].`.
    """

    def __init__(self, data: object, place: str = "") -> None:
        self.place = place
        if not isinstance(data, dict):
            name = place.rstrip(".") or None
            raise Problem(400, f"{name or 'the body'} is not an object", name)
        self._data: Mapping[str, Any] = data
        self._asked: set[str] = set()

    def wrong(self, name: str, why: str) -> Problem:
        return Problem(400, f"{self.place}{name}: {why}", self.place + name)

    def has(self, name: str) -> bool:
        self._asked.add(name)
        return self._data.get(name) is not None

    def any(self, name: str) -> Any:
        """Whatever it is; None where it is absent."""
        self._asked.add(name)
        return self._data.get(name)

    def required(self, name: str) -> Any:
        if not self.has(name):
            raise self.wrong(name, "is missing")
        return self._data[name]

    def text(self, name: str) -> str | None:
        value = self.any(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, f"{_shown(value)} is not a text")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            if not isinstance(value, float) or not value.is_integer():
                raise self.wrong(name, f"{_shown(value)} is not a whole number")
            value = int(value)
        if not low <= value <= high:
            raise self.wrong(name, f"{_shown(value)} is outside {low}..{high}")
        return int(value)

    def number(self, name: str) -> float | None:
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, f"{_shown(value)} is not a number")
        try:
            return float(value)
        except OverflowError:
            raise self.wrong(name, f"{_shown(value)} is too large") from None

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"{_shown(value)} is not true or false")
        return value

    def child(self, name: str) -> Fields | None:
        value = self.any(name)
        return None if value is None else Fields(value, f"{self.place}{name}.")

    def items(self, name: str, most: int) -> list[Any]:
        """A list; empty where it is absent."""
        value = self.any(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, f"{_shown(value)} is not a list")
        if len(value) > most:
            raise self.wrong(name, f"has {len(value)} entries, limit {most}")
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text or a list of texts, none of them empty."""
        value = self.any(name)
        if isinstance(value, str):
            value = [value]
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(t, str) and t for t in value):
            raise self.wrong(name, f"{_shown(value)} is not a text or a list of texts")
        if len(value) > most:
            raise self.wrong(name, f"has {len(value)} entries, limit {most}")
        return tuple(value)

    def without_effect(self, *names: str) -> None:
        """They do not change what is answered."""
        self._asked.update(names)

    def refuse(self, name: str, why: str, *off: object) -> None:
        """A field that is known and not done; `off` are values that ask for nothing."""
        value = self.any(name)
        if value is not None and not any(type(value) is type(o) and value == o for o in off):
            raise self.wrong(name, why)

    def done(self) -> None:
        """Raises Problem: a field that nobody asked for might change the result."""
        for name, value in self._data.items():
            if name not in self._asked and value is not None:
                raise self.wrong(
                    str(name)[:SHOWN], "is not known here, and might change the result"
                )
