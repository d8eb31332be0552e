"""A TOML table into a frozen dataclass: every key known, every value of its type and in its range.

A field's annotation gives the type; its `Limits` what is allowed beyond it. An error names where
the value comes from, its key, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from dsconv.convert.files.toml_file import parse_toml
from dsconv.errors import DsconvError, InputError, UsageError

Table = TypeVar("Table")
TYPE_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Settings:
    """Values by dotted key from `--set`, as they were typed."""

    texts: Mapping[str, str]

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Settings:
        """Raises UsageError: an argument is not KEY=VALUE."""
        texts = {}
        for argument in arguments:
            key, sign, text = argument.partition("=")
            if not sign or not key:
                raise UsageError(
                    f"--set {argument}: no value", "use KEY=VALUE, such as quantize.bits=8"
                )
            texts[key.strip()] = text.strip()
        return cls(texts)

    def value(self, key: str) -> Any:
        """The text as TOML; what TOML does not know is a string, so that quotes are not needed."""
        try:
            return parse_toml(f"value = {self.texts[key]}", key, "")["value"]
        except InputError:
            return self.texts[key]

    def applied_to(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the table with these values in it; tables that are not there are added."""
        result = {k: dict(v) if isinstance(v, dict) else v for k, v in table.items()}
        for key in self.texts:
            *parents, name = key.split(".")
            inner = result
            for parent in parents:
                inner = inner.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise UsageError(f"--set {key}: {parent!r} is no table", "see dsconv recipes")
            inner[name] = self.value(key)
        return result


@dataclass(frozen=True)
class TableReader:
    """Reads the tables of one file; knows which values were set on the command line instead."""

    file: str
    settings: Settings

    def fail(self, key: str, problem: str, hint: str) -> DsconvError:
        """The error for a key, blaming the file or the command line."""
        if key in self.settings.texts:
            return UsageError(f"--set {key}: {problem}", hint)
        return InputError(f"{self.file}: {key}: {problem}", hint)

    def read(self, kind: type[Table], table: Mapping[str, Any], prefix: str = "") -> Table:
        """Raises InputError or UsageError."""
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"did you mean {prefix}{near[0]}? " if near else ""
                raise self.fail(
                    prefix + key, "unknown key", f"{hint}known keys: {', '.join(known)}"
                )
        hints = get_type_hints(kind)
        values = {}
        for name, entry in known.items():
            if name in table:
                values[name] = self._value(hints[name], entry, table[name], prefix + name)
            elif entry.default is MISSING and entry.default_factory is MISSING:
                raise self.fail(prefix + name, "missing", f"add {prefix}{name} = …")
        return kind(**values)

    def _value(self, annotation: Any, entry: Field[Any], value: Any, key: str) -> Any:
        expected = _without_none(annotation)
        if is_dataclass(expected):
            if not isinstance(value, dict):
                raise self.fail(key, f"{value!r} is not a table", f"write it as [{key}]")
            return self.read(expected, value, f"{key}.")  # type: ignore[arg-type]
        if expected is str and key in self.settings.texts and not isinstance(value, str):
            value = self.settings.texts[key]  # `main` or `7b` and `123` alike
        if get_origin(expected) is tuple:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                hint = 'write ["a", "b"]'
                raise self.fail(key, f"{value!r} is not a list of strings", hint)
            return tuple(value)
        if not _is_a(expected, value):
            problem = f"{value!r} is not {TYPE_NAMES[expected]}"
            raise self.fail(key, problem, f"allowed: {_allowed(entry, expected)}")
        limits = entry.metadata.get("limits")
        if limits is not None and not limits.allow(value):
            problem = f"{value!r} is not allowed; allowed: {limits}"
            raise self.fail(key, problem, limits.hint(value))
        return float(value) if expected is float else value


def _allowed(entry: Field[Any], expected: Any) -> str:
    limits = entry.metadata.get("limits")
    return TYPE_NAMES[expected] if limits is None else f"{TYPE_NAMES[expected]}, {limits}"


def _without_none(annotation: Any) -> Any:
    """`int | None` -> `int`."""
    if get_origin(annotation) in (Union, UnionType):
        (kind,) = (part for part in get_args(annotation) if part is not NoneType)
        return kind
    return annotation


def _is_a(expected: Any, value: Any) -> bool:
    """A truth value is no number, and an integer is a float."""
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)
