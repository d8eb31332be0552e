"""What a text file is by its content: rows of JSON in every writing, prose, or no text at all."""

from __future__ import annotations

import gzip
import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsconv.errors import InputError
from dsconv.runtime.text import json_structure
from dsconv.runtime.text.row_forms import Conversation, PlainText, read_row
from dsconv.runtime.text.rows import Unusable, rows_of, spread_order
from dsconv.runtime.text.text_file import open_text

TEXTS = [{"text": "one"}, {"text": 'two "quoted" \\ [{,'}, {"text": "three\u2028\x85\x0b\x0c, 四"}]


def values(path: Path, content: str | bytes) -> list[Any] | None:
    """None for prose; rows that are not JSON as their reason."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(data)
    with open_text(path) as file:
        rows = rows_of(file)
        if rows is None:
            return None
        found = []
        for index in range(len(rows)):
            try:
                found.append(rows.value(index))
            except Unusable as error:
                found.append(str(error))
        return found


def read_all(path: Path) -> None:
    with open_text(path) as file:
        assert rows_of(file) is None
        file.text(0, file.size)


def object_of(**lists: Any) -> str:
    return json.dumps({"version": "1.0", "meta": {"data": [1]}, **lists}, indent=2)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(TEXTS),
        json.dumps(TEXTS, indent=1),
        json.dumps(TEXTS, indent=4).replace("\n", "\r\n"),
        "\n\n" + json.dumps(TEXTS, separators=(",", ":"), ensure_ascii=False) + "\n\n",
        "[\n" + ",\n".join(map(json.dumps, TEXTS)) + "\n]\n",
        "\n".join(map(json.dumps, TEXTS)),
        "\r\n".join(map(json.dumps, TEXTS)),
        "\n".join(json.dumps(row, indent=2) for row in TEXTS),
        ",\n".join(json.dumps(row, indent=2) for row in TEXTS),
        object_of(data=TEXTS),
        object_of(train=TEXTS, test=[{"text": "four"}]),
        object_of(instances=TEXTS),
        object_of(whatever=TEXTS),
        json.dumps({"data": TEXTS}),
        ("\ufeff" + json.dumps(TEXTS)).encode(),
        ("\ufeff" + "\n".join(map(json.dumps, TEXTS))).encode(),
        ("\n".join(map(json.dumps, TEXTS))).encode("utf-16"),
        ("\ufeff" + json.dumps(TEXTS, indent=1)).encode("utf-16-be"),
        json.dumps(TEXTS).encode("utf-32"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSON", "rows.txt", "rows"])
def test_rows_are_found_by_the_content(name: str, content: str | bytes, tmp_path: Path) -> None:
    assert values(tmp_path / name, content) == TEXTS


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in TEXTS]
    assert values(tmp_path / "rows.jsonl", "\n".join(lines)) == TEXTS
    raw = '{"text": "a\u2028b\u2029c\x85d"}\r\n\r\n  \n{"text": "e"}'
    found = values(tmp_path / "rows.jsonl", raw)
    assert found == [{"text": "a\u2028b\u2029c\x85d"}, None, None, {"text": "e"}]


@pytest.mark.parametrize(
    "content",
    [
        "Once upon a time.\n",
        "[1] Smith, J. et al.\n[2] Jones\n",
        "[1]\nSmith, J. et al.\n",
        "[Chapter 1]\nIt was a dark night.\n",
        "[[Wiki link]] is a page.\n",
        '["Hello," she said.] And more.\n',
        "{\\bf Theorem.} Let x be\n",
        "{ int x = 0; }\n",
        "{}\n",
        '"Hello," she said.\n"Well," he said.\n',
        "5\n",
        "text of a book, and then more of it\n",
        "\u2028[ not json\n",
    ],
)
def test_prose_is_prose_however_it_begins(content: str, tmp_path: Path) -> None:
    if content == "{}\n":
        assert values(tmp_path / "a.txt", content) == [{}]
    else:
        assert values(tmp_path / "a.jsonl", content) is None


def test_broken_lines_do_not_hide_the_others(tmp_path: Path) -> None:
    found = values(
        tmp_path / "a", 'garbage\n{"text": "a"}\n{"text": \n{"text": "b"}\n{"text": "c"}'
    )
    assert found is not None
    assert [row for row in found if isinstance(row, dict)] == [{"text": x} for x in "abc"]
    assert all("not valid JSON" in row for row in found if isinstance(row, str))


def test_strings_and_lists_are_rows_too(tmp_path: Path) -> None:
    assert values(tmp_path / "a", '"one"\n"two"\n') == ["one", "two"]
    assert values(tmp_path / "a", '["one", "two"]') == ["one", "two"]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert values(tmp_path / "a", json.dumps([turns, turns])) == [turns, turns]
    assert values(tmp_path / "a", f"{json.dumps(turns)}\n{json.dumps(turns)}\n") == [turns, turns]
    assert values(tmp_path / "a", json.dumps(turns, indent=1)) == [turns]  # one conversation


def test_one_object_may_be_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}]}
    assert values(tmp_path / "a", json.dumps(row)) == [row]
    assert values(tmp_path / "a", json.dumps(row, indent=1)) == [row]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (json.dumps(TEXTS)[:-1], "cut short"),
        (json.dumps(TEXTS, indent=1)[:-20], "cut short"),
        (json.dumps(TEXTS) + " and more", "more after the end"),
        (object_of(data=TEXTS)[:-3], "cut short"),
        (object_of(data=[]), None),
        ("[]", "empty"),
        ('{"a": 1,\n "b": 2}\nand prose', "other text"),
        ("{'text': 'a'}\n{'text': 'b'}\n", "Python's writing"),
        ("text,label\nfirst,1\n", "a table with the columns"),
        ("question\tanswer\n1+1\t2\n", "a table with the columns"),
        (b"caf\xe9", "not UTF-8"),
        (gzip.compress(b"text", mtime=0), "gzip"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"ARROW1\0\0", "Arrow"),
        (b"\xff\xff\xff\xff\x10\0\0\0", "Arrow stream"),
        ("text".encode("utf-16-le"), "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (" \n\r\n\t", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"\xff\xfea", "UTF-16"),
    ],
)
def test_what_is_no_text_is_refused_with_a_cure(
    content: str | bytes, word: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    if word is None:
        assert values(path, content) is not None
        return
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_all(path)
    assert word in f"{caught.value.message} {caught.value.hint}"
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b'{"text": "caf\xc3\xa9"}\n', mtime=0),
        b"{'text': 'caf\xc3\xa9'}\n",
        b"text,label\ncaf\xc3\xa9,1\n",
        "text\tlabel\ncafé\t1\n".encode(),
        '{"text": "café"}\n'.encode("utf-16-le"),
    ],
)
def test_the_cures_work(content: bytes, tmp_path: Path) -> None:
    """The hint's command, run as it is printed, gives a file that is read."""
    path, made = tmp_path / "FILE", tmp_path / "TEXT"
    with pytest.raises(InputError) as caught:
        values(path, content)
    command = caught.value.hint.partition(": ")[2].replace("FILE.jsonl", "TEXT")
    command = command.replace("python", shlex.quote(sys.executable), 1)
    environment = {**os.environ, "PYTHONUTF8": "1"}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment)
    found = values(tmp_path / "again", made.read_bytes())
    assert found is not None
    assert found[0]["text"] == "café"


def random_value(source: random.Random, depth: int) -> Any:
    kind = source.randrange(5 if depth else 3)
    if kind == 3:
        return [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    if kind == 4:
        return {f"k{i}": random_value(source, depth - 1) for i in range(source.randrange(4))}
    return source.choice(['a"b', "\\", '\\"', "[{", "}],", "é\u2028", "", 1.5, None, True])


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_places_of_entries_against_pythons_reader(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_structure, "PIECE", piece)
    source = random.Random(piece)
    for _ in range(60):
        rows = [{"text": "x"}, *(random_value(source, 4) for _ in range(source.randrange(9)))]
        content = json.dumps(
            rows, indent=source.choice([None, 1]), ensure_ascii=source.choice([True, False])
        )
        assert values(tmp_path / "a", content) == rows
        held = json.dumps({"x": rows[1:2], "data": rows}, indent=1)
        assert values(tmp_path / "a", held) == rows


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 1000])
def test_any_first_few_of_an_order_are_spread_evenly(count: int) -> None:
    order = list(spread_order(count))
    assert sorted(order) == list(range(count))
    for taken in (1, 2, 5, count // 2, count):
        places = sorted(order[:taken])
        gaps = [b - a for a, b in zip([-1, *places], [*places, count], strict=True)]
        assert max(gaps) <= 4 * count / max(1, taken) + 1


def test_a_pipe_is_read_where_once_is_enough(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"echo words > {pipe}"])
    with open_text(pipe, pipe=True) as file:
        assert file.text(0, file.size) == "words\n"
    assert writer.wait() == 0
    with pytest.raises(InputError, match="pipe"), open_text(pipe):
        pass


def test_folders_and_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="cannot read"), open_text(path):
            pass


# --- what a row says

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = [USER, ANSWER]
SYSTEM = {"role": "system", "content": "s"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
PARTS = [{"type": "text", "text": "q"}]
TRANSCRIPT = "\n\nHuman: q\n\nAssistant: a"


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"messages": PAIR}, PAIR),
        ({"messages": [SYSTEM, *PAIR]}, [SYSTEM, *PAIR]),
        ({"messages": PAIR, "system": "s"}, [SYSTEM, *PAIR]),
        ({"messages": [{"role": "user", "content": PARTS}, ANSWER]}, PAIR),
        ({"messages": [{"role": "user", "content": ["q"]}, ANSWER]}, PAIR),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "bard", "value": "a"}]}, PAIR),
        ({"conversation": PAIR}, PAIR),
        ({"conversations": ["q", "a"]}, PAIR),
        ({"data": ["q", "a"], "id": "1"}, PAIR),
        ({"contents": [{"role": "user", "parts": [{"text": "q"}]}, ANSWER]}, PAIR),
        ({"instruction": "q", "input": "", "output": "a"}, PAIR),
        ({"instruction": "q", "output": "a", "system": "s"}, [SYSTEM, *PAIR]),
        (
            {"instruction": "q", "input": "i", "output": "a"},
            [{"role": "user", "content": "q\ni"}, ANSWER],
        ),
        (
            {"instruction": "q", "context": "i", "response": "a"},
            [{"role": "user", "content": "q\ni"}, ANSWER],
        ),
        ({"instruction": "q", "output": "a", "history": [["q", "a"]]}, [*PAIR, *PAIR]),
        ({"query": "q", "response": "a", "history": []}, PAIR),
        ({"prompt": "q", "completion": "a"}, PAIR),
        ({"prompt": "q", "response": "a"}, PAIR),
        ({"prompt": [USER], "completion": [ANSWER]}, PAIR),
        ({"prompt": [USER]}, [USER]),
        ({"question": "q", "answer": "a"}, PAIR),
        ({"question": "q", "answer": 4}, [USER, {"role": "assistant", "content": "4"}]),
        ({"problem": "q", "solution": "a", "answer": "7"}, PAIR),
        ({"Question": "q", "Response": "a"}, PAIR),
        ({"inputs": "q", "targets": "a"}, PAIR),
        ({"input": "q", "output": "a"}, PAIR),
        ({"system_prompt": "s", "question": "q", "response": "a"}, [SYSTEM, *PAIR]),
        ({"row_idx": 0, "row": {"question": "q", "answer": "a"}}, PAIR),
        ({"custom_id": "1", "body": {"messages": PAIR}}, PAIR),
        ({"prompt": "q", "chosen": PAIR, "rejected": [USER]}, PAIR),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, PAIR),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, PAIR),
        (
            {"conversations": [{"from": "human", "value": "q"}], "chosen": ANSWER, "rejected": {}},
            PAIR,
        ),
        (
            {"question": "q", "complex_cot": "t", "response": "a"},
            [USER, {**ANSWER, "reasoning_content": "t"}],
        ),
        (
            {"messages": [USER, {**ANSWER, "reasoning_content": "t"}]},
            [USER, {**ANSWER, "reasoning_content": "t"}],
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "1", "content": "r"},
                ]
            },
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "r", "tool_call_id": "1"},
            ],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": "r"},
                ]
            },
            [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "r"},
            ],
        ),
    ],
)
def test_forms_of_conversations(row: Any, turns: list[Any]) -> None:
    found = read_row(row)
    assert isinstance(found, Conversation)
    assert list(found.turns) == turns
    assert bool(found.note) == ("chosen" in row)


@pytest.mark.parametrize(
    "row",
    [
        *("words", {"text": "words"}, {"content": "words", "id": 1}, {"TEXT": "words"}),
        {"text": "words", "meta": {"text": "other"}},
        {"text": "words", "role": "prompter"},
        {"instruction": "q", "input": "", "output": "a", "text": "words"},
    ],
)
def test_forms_of_texts(row: Any) -> None:
    assert read_row(row) == PlainText("words")


def test_tools_come_along() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools)):
        found = read_row({"messages": PAIR, "tools": given})
        assert isinstance(found, Conversation)
        assert found.tools == tuple(tools)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": ""}, "empty"),
        ({"text": 5}, "text is a number"),
        ({"text": ["a"]}, "text is a list"),
        ({"messages": []}, "empty"),
        ({"messages": "hi"}, "messages is a string"),
        ({"messages": [1]}, "messages[0] is no turn"),
        ({"messages": [{"role": "user"}]}, "not a role and a content"),
        ({"messages": [{"role": "user", "content": None}]}, "no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": {"x": 1}}]}, "no text"),
        ({"image": "a.png", "conversations": PAIR}, "'image'"),
        ({"question": "q", "answer": ""}, "answer is empty"),
        ({"question": "q", "answer": {"text": ["a"]}}, "not a role"),
        ({"question": "q"}, "'question'"),
        ({"input_ids": [1, 2]}, "'input_ids'"),
        ({"role": "user", "content": "a"}, "'role'"),
        ({}, "none"),
        ([1, 2], "no turn"),
        (5, "int, not an object"),
        ({"messages": PAIR, "tools": "{"}, "tools"),
    ],
)
def test_rows_of_no_use_say_why(row: Any, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        read_row(row)
    assert reason in str(caught.value)
