"""Calibration text: sources, shares, windows, and the options of the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import assert_refused, call_main
from reference_models import tiny_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, UsageError
from dsconv.runtime.calibration.text_windows import (
    CalibrationOptions,
    CalibrationSource,
    calibration_windows,
    shares,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama")))


def options_of(*paths: Path, tokens: int, window: int) -> CalibrationOptions:
    return CalibrationOptions(tuple(map(CalibrationSource, paths)), tokens, window)


def write_documents(folder: Path) -> dict[str, Path]:
    words = " ".join(f"w{index}" for index in range(400))
    lines = {
        "text": {"text": words},
        "messages": {"messages": [{"role": "user", "content": words}]},
        "question": {"question": words, "answer": words},
    }
    files = {name: folder / f"{name}.jsonl" for name in lines}
    for name, entry in lines.items():
        files[name].write_text(json.dumps(entry) + "\n\n", encoding="utf-8")
    files["plain"] = folder / "plain.txt"
    files["plain"].write_text(words, encoding="utf-8")
    return files


def write_stories(path: Path, lengths: list[int]) -> Path:
    """Documents of so many tokens; each begins with t9, which is nowhere else."""
    texts = [" ".join(["t9", *(f"t{10 + i % 100}" for i in range(n - 1))]) for n in lengths]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["text", "messages", "question", "plain"])
def test_files_become_windows(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_documents(tmp_path)[kind]
    windows = calibration_windows(checkpoint, options_of(path, tokens=96, window=32))
    assert [len(window) for window in windows] == [32, 32, 32]
    assert all(0 <= token < 160 for window in windows for token in window)


def test_files_share_the_budget_and_windows_spread_over_them(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"t{3 + i % 157}" for i in range(400)), encoding="utf-8")
    other = write_documents(tmp_path)["text"]
    one = calibration_windows(checkpoint, options_of(words, tokens=10**6, window=16))
    assert [token for window in one for token in window] == [3 + i % 157 for i in range(400)]
    both = calibration_windows(checkpoint, options_of(words, other, tokens=8 * 16, window=16))
    assert len(both) == 8
    assert both[:4] == [one[0], one[6], one[12], one[18]]


def test_windows_begin_with_documents_where_there_is_choice(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = write_stories(tmp_path / "stories.jsonl", [20, 31, 25, 28] * 20)
    windows = calibration_windows(checkpoint, options_of(path, tokens=10 * 32, window=32))
    assert len(windows) == 10
    assert all(window[0] == 9 for window in windows)
    everything = calibration_windows(checkpoint, options_of(path, tokens=10**6, window=32))
    assert len(everything) == 20 * 104 // 32


def test_a_long_document_gets_its_windows_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write_stories(tmp_path / "stories.jsonl", [1600, *[20] * 20])
    windows = calibration_windows(checkpoint, options_of(path, tokens=10 * 32, window=32))
    assert sum(9 in window for window in windows[1:]) == 2  # the short ones are a fifth


@pytest.mark.parametrize(
    ("count", "weights", "limits", "expected"),
    [
        (8, [3, 1], [99, 99], [6, 2]),
        (64, [1, 3, 1], [999, 999, 999], [13, 38, 13]),
        (8, [1, 1], [2, 99], [2, 6]),  # the short one's rest goes to the other
        (8, [1, 1], [2, 3], [2, 3]),
        (8, [1000, 1], [99, 99], [7, 1]),  # nobody is left out
        (1, [1, 1], [9, 9], [1, 1]),
    ],
)
def test_shares(count: int, weights: list[float], limits: list[int], expected: list[int]) -> None:
    assert shares(count, weights, limits) == expected


def test_a_mix_of_the_model_and_a_file(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_stories(tmp_path / "stories.jsonl", [1600])
    sources = (CalibrationSource(weight=3), CalibrationSource(path))
    mixed = calibration_windows(checkpoint, CalibrationOptions(sources, 8 * 32, 32))
    assert [len(window) for window in mixed] == [32] * 8
    alone = calibration_windows(checkpoint, options_of(path, tokens=64, window=32))
    assert mixed[6:] == alone
    assert "--calibration self" in capsys.readouterr().err


def test_only_a_single_file_is_warned_about(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_documents(tmp_path)
    calibration_windows(checkpoint, options_of(files["plain"], files["text"], tokens=64, window=32))
    calibration_windows(checkpoint, CalibrationOptions(tokens=8, window=8))
    assert capsys.readouterr().err == ""
    calibration_windows(checkpoint, options_of(files["plain"], tokens=64, window=32))
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("self", None, 1.0),
        ("self=2.5", None, 2.5),
        ("./self", "self", 1.0),
        ("traces.jsonl", "traces.jsonl", 1.0),
        ("traces.jsonl=3", "traces.jsonl", 3.0),
        ("a=b.txt=3", "a=b.txt", 3.0),
    ],
)
def test_sources_are_parsed(text: str, path: str | None, weight: float) -> None:
    assert CalibrationSource.parse(text) == CalibrationSource(Path(path) if path else None, weight)


def test_a_name_with_an_equals_sign_is_a_name_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("temperature=3").write_text("words", encoding="utf-8")
    assert CalibrationSource.parse("temperature=3") == CalibrationSource(Path("temperature=3"))


@pytest.mark.parametrize("text", ["self=", "self=many", "a.txt=0", "a.txt=-1", "a=nan", "a=inf"])
def test_wrong_weights_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="weight"):
        CalibrationSource.parse(text)


BAD = ('{"other": 1}', "[1]", '{"messages": []}', "not json", '{"text": 5}')


@pytest.mark.parametrize("line", BAD)
def test_lines_without_text_are_skipped_and_named(
    line: str, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"text": "w1 " * 100})
    path.write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    windows = calibration_windows(checkpoint, options_of(path, tokens=128, window=32))
    assert len(windows) == 4
    told = capsys.readouterr().err
    assert "empty" in line or "[]" in line or f"{path}: 1 of 3 rows skipped: line 2: " in told


@pytest.mark.parametrize("line", [bad for bad in BAD if "[]" not in bad])
def test_too_many_lines_without_text_are_refused_by_number(
    line: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: .*2 of 3 rows"):
        calibration_windows(checkpoint, options_of(path, tokens=64, window=32))


def test_too_little_text_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one two", encoding="utf-8")
    with pytest.raises(InputError, match="at least 512"):
        calibration_windows(checkpoint, CalibrationOptions((CalibrationSource(path),)))


def test_files_are_read_before_the_model_writes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    sources = (CalibrationSource(), CalibrationSource(tmp_path / "missing.txt"))
    with pytest.raises(InputError, match=r"missing\.txt: cannot read"):
        calibration_windows(checkpoint, CalibrationOptions(sources, 10**9))


@pytest.mark.parametrize("weight", ["", "=2"])
def test_the_command_calibrates(
    weight: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tiny_checkpoint(tmp_path / "model", "qwen2", max_position_embeddings=64)
    path, output = write_documents(tmp_path)["plain"], tmp_path / "int4"
    given = ("--calibration", f"{path}{weight}", "--calibration", "self") if weight else ()
    outcome = call_main(
        *(monkeypatch, capsys, "quantize", source, "--method", "gptq", *given),
        *("--calibration-tokens", "256", "-o", output, "--json"),
    )
    assert outcome.code == 0, outcome.err
    manifest = json.loads((output / "dsconv.json").read_text(encoding="utf-8"))
    assert manifest["recipe"]["method"] == "gptq"
    assert manifest["facts"]["calibration_tokens"] == 256


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--method", "search", "--calibration", "x.txt"), 2, "calibration text"),
        (("--method", "gptq", "--calibration", "self=much"), 2, "weight"),
        (("--method", "gptq", "--calibration", "unknown"), 3, "unknown: cannot read"),
    ],
)
def test_wrong_options_are_refused(
    arguments: tuple[str, ...],
    code: int,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    outcome = call_main(monkeypatch, capsys, "quantize", source, *arguments, "-o", tmp_path / "out")
    assert_refused(outcome, code, word)
