"""A run over a file of prompts that was stopped: what goes on, and what does not."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import call_main
from prompt_files import lines

from dsconv.convert.quantize.journal import JOURNAL
from dsconv.errors import InputError, OutputError
from dsconv.runtime.batches.native import NativeBatch
from dsconv.runtime.batches.open import BatchOptions
from dsconv.runtime.commands.run import run as run_command
from dsconv.runtime.prompts import run as run_module
from dsconv.runtime.prompts.answer import Asking, NoRoom
from dsconv.runtime.prompts.output import answers_file
from dsconv.runtime.prompts.rows import prompt_rows
from dsconv.runtime.prompts.run import PromptsRequest, run_prompts
from dsconv.runtime.sessions.load import load


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


# Options of `run` that cannot change an answer of --prompts, or are refused beside it.
HARMLESS = {
    *("prompts", "output", "overwrite", "parallel", "threads", "as_json"),
    *("prompt", "prompt_file", "chat", "speculate", "context"),
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

    def keep(request: Any, asking: Any, file: Any, *others: Any) -> Any:
        found.append(run_module.purpose_of(request, asking.loaded, file))
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


Rows = tuple[PromptsRequest, Asking, Any]


def six_rows(native: Path, folder: Path, first: str = "hello") -> Rows:
    texts = [first, *(f"hello {i}" for i in range(5))]
    file = lines(folder / "p.jsonl", *({"prompt": text, "id": f"n{text}"} for text in texts))
    request = PromptsRequest(file, str(native), folder / "a.jsonl", batch=BatchOptions(2))
    return request, Asking(load(str(native), threads=1), {"max_tokens": 4}), prompt_rows(file)


def answers_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("error", [MemoryError("no more"), InputError("of a graph", "")])
@pytest.mark.parametrize("torn", [False, True])
def test_only_what_is_wrong_with_a_row_is_its_answer(
    native: Path, tmp_path: Path, error: Exception, torn: bool
) -> None:
    """No memory is no answer: the row is asked again by the next run, also where a kill cut the
    last line of the journal off."""
    run = six_rows(native, tmp_path)
    whole, passes = NativeBatch.step, [0]

    def step(batch: NativeBatch, pieces: Any) -> Any:
        passes[0] += 1
        if passes[0] == 7:
            raise error
        return whole(batch, pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeBatch, "step", step)
        with pytest.raises(type(error)):
            run_prompts(*run, print)
    if torn:
        with (tmp_path / "a.jsonl.partial" / JOURNAL).open("ab") as file:
            file.write(b'{"answers": [{"index": 5, "te')
    report = run_prompts(*run, print)
    assert report.resumed > 0
    assert report.skipped == 0
    answers = answers_in(tmp_path)
    assert [answer["index"] for answer in answers] == list(range(6))
    assert [answer["id"] for answer in answers] == ["nhello", *(f"nhello {i}" for i in range(5))]
    assert all("error" not in answer for answer in answers)
    alone = tmp_path / "alone"
    alone.mkdir()
    run_prompts(*six_rows(native, alone), print)
    assert answers_in(alone) == answers


def test_a_row_that_has_no_room_is_no_answer(native: Path, tmp_path: Path) -> None:
    """The cache of this machine was too small; the others are answered, and that one later."""
    request, asking, rows = six_rows(native, tmp_path, "hello " * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeBatch, "capacity", 40)
        with pytest.raises(NoRoom, match=r"row 1: .* holds 40"):
            run_prompts(request, asking, rows, print)
    report = run_prompts(request, asking, rows, print)
    assert (report.resumed, report.skipped) == (5, 0)
    assert all("error" not in answer for answer in answers_in(tmp_path))
