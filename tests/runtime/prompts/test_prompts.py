"""Files of prompts: what rows ask, and answers as `run` gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_refused, call_main
from prompt_files import lines

from dsconv.errors import InputError
from dsconv.runtime.prompts.rows import messages_of, prompt_rows
from dsconv.runtime.text.chat_template import Message

USER = (Message("user", "hello"),)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello"},
        {"Question": "hello", "answer": "4"},
        {"messages": [{"role": "user", "content": "hello"}]},
        {
            "messages": [
                *[{"role": "user", "content": "hello"}],
                {"role": "assistant", "content": "x"},
            ]
        },
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "x"}]},
        {"text": "hello"},
        "hello",
    ],
)
def test_what_a_row_asks(row: Any) -> None:
    assert messages_of(row) == USER


def test_rows_bring_settings_and_names(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "p.jsonl",
        {"prompt": "hello", "id": "a", "temperature": 0.5, "max_tokens": 7, "stop": "x"},
        {
            "custom_id": "b",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "messages": [{"role": "user", "content": "hello"}],
                "max_completion_tokens": 3,
            },
        },
        {"prompt": "hello", "tools": [{"type": "function"}]},
        {"prompt": "hello", "n": 3},
        {"prompt": "hello", "temperature": "hot"},
        {"system": "s", "prompt": "hello"},
    )
    first, second, tools, many, hot, system = prompt_rows(file).rows
    assert (first.name, first.settings, first.stop) == (
        "a",
        {"temperature": 0.5, "max_tokens": 7},
        ("x",),
    )
    assert (second.name, second.messages, second.settings) == ("b", USER, {"max_tokens": 3})
    assert tools.error == "tools is not applied by this command"
    assert many.error is not None
    assert "one answer per row" in many.error
    assert hot.error == "temperature is no number"
    assert system.messages == (Message("system", "s"), *USER)


def test_what_is_no_file_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("just text\nand more\n")
    with pytest.raises(InputError, match="plain text"):
        prompt_rows(tmp_path / "p.txt")
    with pytest.raises(InputError, match="line 1"):
        prompt_rows(lines(tmp_path / "p.jsonl", {"number": 3}))


def test_answers_are_those_of_single_runs(
    native: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = ["hello", "another question", "hello there", ""]
    file = lines(tmp_path / "p.jsonl", *({"prompt": p, "id": i} for i, p in enumerate(prompts)))
    output = tmp_path / "a.jsonl"
    options = ["--max-tokens", 12, "--temperature", 0.7, "--seed", 3]
    done = call_main(
        *(monkeypatch, capsys, "run", native, "--prompts", file, "-o", output, "--json"), *options
    )
    assert done.code == 0, done.err
    assert (done.json["prompts"], done.json["skipped"], done.json["resumed"]) == (3, 0, 0)
    answers = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [(answer["index"], answer["id"]) for answer in answers] == [(0, 0), (1, 1), (2, 2)]
    for answer in answers:
        asked = ["-p", prompts[answer["index"]], "--activations", "own", "--json"]
        alone = call_main(monkeypatch, capsys, "run", native, *asked, *options)
        for key in ("text", "tokens", "stop_reason", "prompt_tokens"):
            assert alone.json[key] == answer[key]
    again = call_main(monkeypatch, capsys, "run", native, "--prompts", file, "-o", output)
    assert_refused(again, 6, "already exists")
    shown = call_main(monkeypatch, capsys, "run", native, "--prompts", file, *options)
    assert len(shown.out.splitlines()) == 3


def test_refused_on_the_command_line(
    native: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "hello"})
    before = file.read_bytes(), native.read_bytes()

    def refused(code: int, *words: str, arguments: list[Any]) -> None:
        assert_refused(call_main(monkeypatch, capsys, "run", native, *arguments), code, *words)

    refused(2, "--prompt", arguments=["--prompts", file, "-p", "x"])
    refused(2, "--prompts", arguments=["-p", "x", "-o", tmp_path / "o"])
    refused(2, "activations", arguments=["--prompts", file, "--activations", "mixed"])
    refused(2, "-o", arguments=["--prompts", file, "--json"])
    refused(3, "missing.jsonl", arguments=["--prompts", tmp_path / "missing.jsonl"])
    refused(2, "prompts itself", arguments=["--prompts", file, "-o", file, "--overwrite"])
    refused(2, "artifact itself", arguments=["--prompts", file, "-o", native, "--overwrite"])
    (tmp_path / "again.jsonl").hardlink_to(file)
    same = tmp_path / "again.jsonl"
    refused(2, "prompts itself", arguments=["--prompts", file, "-o", same, "--overwrite"])
    assert (file.read_bytes(), native.read_bytes()) == before


def answered(*rows: Any) -> list[str]:
    return ["\n".join(message.content for message in messages_of(row)) for row in rows]


def test_what_stands_beside_a_question_is_asked_too() -> None:
    assert answered(
        {"instruction": "sum up", "input": "a text", "output": "x"},
        {"question": "who?", "context": "It was Ann.", "answers": {"text": ["Ann"]}},
        {"prompt": "and now?", "history": [["one", "two"]], "system": "short"},
        {"prompt": "first", "chosen": "good", "rejected": "bad"},
    ) == ["sum up\na text", "who?\nIt was Ann.", "short\none\ntwo\nand now?", "first"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"passage": "It was Ann.", "question": "who?"}, "passage beside question"),
        ({"prompt": "x", "image": "a.png"}, "'image'"),
        ({"prompt": "x", "response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": "x", "chat_template_kwargs": {"enable_thinking": False}}, "chat_template"),
        ({"prompt": "x", "top_k": 2.5}, "no whole number"),
        ({"prompt": "x", "temperature": -1}, "outside"),
        ({"prompt": "x", "max_tokens": 0}, "below 1"),
        ({"prompt": "x", "do_sample": True}, "without a temperature"),
        ({"prompt": "x", "num_beams": 4}, "num_beams"),
        ({"url": "/v1/embeddings", "body": {"input": "x"}}, "/v1/embeddings"),
        ({"url": "/v1/completions", "body": {"prompt": "x", "mirostat": 2}}, "mirostat"),
    ],
)
def test_what_would_change_an_answer_is_named(tmp_path: Path, row: Any, words: str) -> None:
    good, bad = prompt_rows(lines(tmp_path / "p.jsonl", {"prompt": "x"}, row)).rows
    assert good.error is None
    assert bad.error is not None
    assert words in bad.error


def test_settings_by_other_names(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "p.jsonl",
        {"prompt": "x", "top_k": -1, "min_tokens": 3, "typical_p": 0.9, "stop_sequences": ["y"]},
        {"prompt": "x", "do_sample": False, "temperature": 0.7, "n": 1, "num_beams": 1},
        {
            "url": "/v1/completions",
            "body": {"prompt": "x", "model": "m", "logprobs": None, "echo": False},
        },
    )
    first, second, third = prompt_rows(file).rows
    assert first.settings == {"top_k": 0, "min_new_tokens": 3, "typical_p": 0.9}
    assert first.stop == ("y",)
    assert second.settings == {"temperature": 0}
    assert (third.raw, third.model, third.error) == (True, "m", None)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_as_other_systems_write_them(tmp_path: Path, newline: str, mark: bytes) -> None:
    rows = [json.dumps({"prompt": f"a\u2028b {i}", "id": "same"}) for i in range(3)]
    text = newline.join([rows[0], "", rows[1], "{broken", rows[2]])
    (tmp_path / "p.jsonl").write_bytes(mark + text.encode())
    found = prompt_rows(tmp_path / "p.jsonl").rows
    assert [row.index for row in found] == [0, 2, 3, 4]
    assert [row.name for row in found] == ["same", "same", None, "same"]
    assert [row.error is None for row in found] == [True, True, False, True]
