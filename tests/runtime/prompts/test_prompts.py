"""Files of prompts: what rows ask, answers as `run` gives them, and that a killed run goes on."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_refused, call_main
from native_models import exported
from small_models import write_checkpoint

from dsconv.errors import InputError, OutputError
from dsconv.runtime.batches.native import NativeBatch
from dsconv.runtime.batches.open import BatchOptions
from dsconv.runtime.commands.run import run as run_command
from dsconv.runtime.prompts import run as run_module
from dsconv.runtime.prompts.answer import Asking
from dsconv.runtime.prompts.output import answers_file
from dsconv.runtime.prompts.rows import messages_of, prompt_rows
from dsconv.runtime.prompts.run import PromptsRequest, run_prompts
from dsconv.runtime.sessions.load import load
from dsconv.runtime.text.chat_template import Message

USER = (Message("user", "hello"),)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    exported(write_checkpoint(folder / "m"), folder / "m.dsq")
    return folder / "m.dsq"


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


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
    first, second, tools, many, hot, system = prompt_rows(file)
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


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    output, purpose = tmp_path / "a.jsonl", {"prompts": "x"}

    def interrupted(wanted: dict[str, str]) -> None:
        with answers_file(output, wanted, False) as answers:
            answers.add({"index": 1, "text": "one"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(purpose)
    assert not output.exists()
    with pytest.raises(OutputError, match="unfinished run"):
        interrupted({"prompts": "y"})
    with answers_file(output, purpose, False) as answers:
        assert answers.found == {1: {"index": 1, "text": "one"}}
        answers.add({"index": 0, "text": "none"})
    assert output.read_text().splitlines() == [
        '{"index": 0, "text": "none"}',
        '{"index": 1, "text": "one"}',
    ]
    assert not (tmp_path / "a.jsonl.partial").exists()


def test_refused_on_the_command_line(
    native: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "hello"})

    def refused(code: int, *words: str, arguments: list[Any]) -> None:
        assert_refused(call_main(monkeypatch, capsys, "run", native, *arguments), code, *words)

    refused(2, "--prompt", arguments=["--prompts", file, "-p", "x"])
    refused(2, "--prompts", arguments=["-p", "x", "-o", tmp_path / "o"])
    refused(2, "activations", arguments=["--prompts", file, "--activations", "mixed"])
    refused(2, "-o", arguments=["--prompts", file, "--json"])
    refused(3, "missing.jsonl", arguments=["--prompts", tmp_path / "missing.jsonl"])


# Options of `run` that cannot change an answer of --prompts, or are refused beside it.
HARMLESS = {
    *("prompts", "output", "overwrite", "parallel", "threads", "as_json"),
    *("prompt", "prompt_file", "chat", "speculate"),
}
# Others, changed. The artifact and the file of prompts count by their content.
CHANGED: dict[str, list[Any]] = {
    "activations": ["--activations", "int16"],
    "system": ["--system", "Be short."],
    "raw": ["--raw"],
    "max_tokens": ["--max-tokens", 3],
    "stop": ["--stop", "x"],
    "temperature": ["--temperature", 0.3],
    "top_p": ["--top-p", 0.5],
    "top_k": ["--top-k", 7],
    "min_p": ["--min-p", 0.1],
    "repetition_penalty": ["--repetition-penalty", 1.1],
    "no_repeat_ngram_size": ["--no-repeat-ngram-size", 3],
    "seed": ["--seed", 9],
    "dtype": ["--dtype", "bfloat16"],
    "kv": ["--kv", "int8"],
    "allow_fallback": ["--allow-fallback"],
    "draft": ["--draft", "ITSELF"],
}


@pytest.fixture
def purpose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """What a command line is for, as its journal has it."""
    found: list[Any] = []

    def keep(request: Any, asking: Any, *others: Any) -> Any:
        found.append(run_module.purpose_of(request, asking))
        raise OutputError("enough", "")

    monkeypatch.setattr(run_module, "run_prompts", keep)

    def of(*arguments: Any) -> Any:
        call_main(monkeypatch, capsys, "run", *arguments)
        return found.pop()

    return of


def test_a_run_with_other_settings_does_not_go_on(
    native: Path, tmp_path: Path, purpose: Callable[..., Any]
) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "hello"})
    plain = ["--prompts", file, "-o", tmp_path / "a.jsonl"]
    known = purpose(native, *plain)
    assert purpose(native, *plain, "--parallel", 3, "--threads", 1) == known
    assert set(CHANGED) | HARMLESS | {"artifact", "provider"} == set(
        inspect.signature(run_command).parameters
    )
    for option, words in CHANGED.items():
        words = [native if word == "ITSELF" else word for word in words]
        assert purpose(native, *plain, *words) != known, option
    other = lines(tmp_path / "other.jsonl", {"prompt": "hello "})
    assert purpose(native, "--prompts", other, "-o", tmp_path / "a.jsonl") != known
    damaged = tmp_path / "m.dsq"
    damaged.write_bytes(native.read_bytes()[:-1] + b"1")
    assert purpose(damaged, *plain) != known


def test_a_draft_changes_no_answer(
    native: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "hello"}, {"prompt": "another question"})
    shown = []
    for options in ([], ["--draft", native]):
        asked = ["run", native, "--prompts", file, "--max-tokens", 40, *options]
        done = call_main(monkeypatch, capsys, *asked)
        assert done.code == 0, done.err
        shown.append(sorted(done.out.splitlines()))
    assert shown[0] == shown[1]


def test_only_what_is_wrong_with_a_row_is_its_answer(native: Path, tmp_path: Path) -> None:
    """No memory is no answer: the row is asked again by the next run."""
    file = lines(tmp_path / "p.jsonl", *({"prompt": f"hello {i}"} for i in range(6)))
    request = PromptsRequest(file, str(native), tmp_path / "a.jsonl", batch=BatchOptions(2))
    asking = Asking(load(str(native), threads=1), {"max_tokens": 4})
    rows = prompt_rows(file)
    whole, passes = NativeBatch.step, [0]

    def step(batch: NativeBatch, pieces: Any) -> Any:
        passes[0] += 1
        if passes[0] == 7:
            raise MemoryError("no more")
        return whole(batch, pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeBatch, "step", step)
        with pytest.raises(MemoryError):
            run_prompts(request, asking, rows, print)
    report = run_prompts(request, asking, rows, print)
    assert report.resumed > 0
    assert report.skipped == 0
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [answer["index"] for answer in answers] == list(range(6))
    assert all("error" not in answer for answer in answers)
