"""JSON is read strictly, and every refusal names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader, parse_json, read_json_object
from dsconv.errors import InputError

Getter = Callable[[ConfigReader], Any]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ", "Expecting value"),
        ('{"a": 1', "Expecting"),
        ('{"a": 1} x', "Extra data"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": Infinity}', "Infinity is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' appears twice"),
        ('{"x": {"b": 1, "b": 1}}', "key 'b' appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a":' * 70 + "1" + "}" * 70, "limit 64 levels"),
        ('{"a": "\\ud800"}', "surrogates"),
        (b'{"\\uDfff": 1}', "surrogates"),
        ("9" * 5000, "digits"),
        (b'{"a": "\xff"}', "decode"),
        ("{'a': 1}", "Expecting property name"),
        ("// comment\n{}", "Expecting value"),
    ],
)
def test_what_is_not_json_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(InputError, match=r"file\.json: not valid JSON") as caught:
        parse_json(text, "file.json")
    assert reason in caught.value.message
    assert len(caught.value.message) < 300


def test_an_empty_file_is_called_so() -> None:
    with pytest.raises(InputError, match=r"file\.json: empty \(0 bytes\)"):
        parse_json("", "file.json")


def test_values_come_through_unchanged() -> None:
    content = {"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}, "": -1}
    assert parse_json(json.dumps(content), "x") == content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[1]", "the top level is list, expected an object"),
        (b"null", "the top level is NoneType"),
        (b'"text"', "the top level is str"),
        (b"\x80\x04\x95", "not valid JSON"),
    ],
)
def test_a_file_must_hold_an_object(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        read_json_object(path)
    assert problem in caught.value.message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "config.json", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_json_object(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JSON_BYTES", 10)
    path = tmp_path / "config.json"
    path.write_text('{"a":1}   ')
    assert read_json_object(path) == {"a": 1}
    path.write_text('{"a":1}    ')
    with pytest.raises(InputError, match="11 bytes, limit 10"):
        read_json_object(path)


GETTERS: dict[str, Getter] = {
    "integer": lambda reader: reader.integer("key"),
    "number": lambda reader: reader.number("key"),
    "boolean": lambda reader: reader.boolean("key", False),
    "string": lambda reader: reader.string("key"),
    "child": lambda reader: reader.child("key"),
    "token_ids": lambda reader: reader.token_ids("key"),
}


@pytest.mark.parametrize(
    ("getter", "value", "expected"),
    [
        ("integer", 7, 7),
        ("number", 7, 7.0),
        ("number", 0.5, 0.5),
        ("boolean", True, True),
        ("boolean", None, False),
        ("string", "x", "x"),
        ("child", None, None),
        ("token_ids", 5, (5,)),
        ("token_ids", [5, 6], (5, 6)),
        ("token_ids", None, ()),
        ("token_ids", [], ()),
    ],
)
def test_right_values_are_returned(getter: str, value: Any, expected: Any) -> None:
    found = GETTERS[getter](ConfigReader({"key": value}, "config.json"))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        *(("integer", value) for value in (True, 1.0, "1", 0, -1, 2**31, [1], {}, None)),
        *(("number", value) for value in (True, "1", -0.1, 1e13, float("inf"), 10**400, None)),
        ("number", float("nan")),
        *(("boolean", value) for value in (0, 1, "true", [], {})),
        *(("string", value) for value in (1, None, ["x"], True)),
        *(("child", value) for value in ([], "x", 1, False)),
        *(("token_ids", value) for value in (True, -1, 2**31, "1", 1.0, [1, None], {"a": 1})),
    ],
)
def test_wrong_values_are_refused_by_file_and_key(getter: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"config\.json: key: "):
        GETTERS[getter](ConfigReader({"key": value}, "config.json"))


def test_defaults_stand_in_for_absent_and_null_only() -> None:
    for data in ({}, {"key": None}):
        reader = ConfigReader(data, "x")
        assert reader.integer("key", 3) == 3
        assert reader.number("key", 0.5) == 0.5
        assert reader.string("key", "d") == "d"
    with pytest.raises(InputError):
        ConfigReader({"key": 0}, "x").integer("key", 3)


def test_a_nested_failure_names_the_whole_path() -> None:
    reader = ConfigReader({"outer": {"inner": {"n": "x"}}}, "config.json")
    outer = reader.child("outer")
    inner = outer.child("inner") if outer else None
    assert inner is not None
    with pytest.raises(InputError, match=r"config\.json: outer: inner: n: 'x' is not an integer"):
        inner.integer("n")
