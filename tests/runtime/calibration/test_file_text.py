"""Large calibration files: parts all over them, as many as the tokens wanted take."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from places import ROOT
from small_models import write_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.calibration import file_text
from dsconv.runtime.calibration.file_text import FileText, Reader
from dsconv.runtime.calibration.text_windows import (
    CalibrationOptions,
    CalibrationSource,
    calibration_windows,
)
from dsconv.runtime.text import rows as rows_module
from dsconv.runtime.text.row_rendering import RowRenderer
from dsconv.runtime.text.tokenizer import TextTokenizer

SHARED_CASES = ROOT.parent / "shared" / "cases"
SIZE = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(write_checkpoint(tmp_path_factory.mktemp("m") / "model")))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large is small here."""
    monkeypatch.setattr(file_text, "WHOLE_BYTES", 4096)
    monkeypatch.setattr(file_text, "TOKEN_BYTES", 4)


def read(checkpoint: Checkpoint, path: Path, count: int) -> FileText:
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    renderer = RowRenderer.of_model(checkpoint.side_files, tokenizer)
    vocabulary = checkpoint.decoder.config.vocab_size
    return Reader(tokenizer, renderer, vocabulary, SIZE).read(path, count)


def row(index: int) -> dict[str, str]:
    return {"text": f"{index:06d} " + "words " * (index % 20)}


def numbers(checkpoint: Checkpoint, found: FileText) -> list[int]:
    """The number that every document begins with."""
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    starts = [found.tokens[border : border + 7] for border in found.borders]
    return [int(tokenizer.decode(start).strip()[:6]) for start in starts]


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("form", ["lines", "array", "indented"])
def test_rows_of_a_large_file_come_from_all_over_it(
    form: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(index) for index in range(20_000)]
    text = {
        "lines": "\n".join(map(json.dumps, rows)),
        "array": json.dumps(rows),
        "indented": json.dumps(rows, indent=1),
    }[form]
    path = tmp_path / "rows"
    path.write_text(text, "utf-8")
    looked_at: list[int] = []
    value = rows_module.Rows.value
    monkeypatch.setattr(
        rows_module.Rows, "value", lambda self, i: (looked_at.append(i), value(self, i))[1]
    )
    found = read(checkpoint, path, 8)
    picked = numbers(checkpoint, found)
    assert found.sampled
    assert picked == sorted(set(picked))
    assert len(found.tokens) >= 2 * 8 * SIZE
    assert len(looked_at) < 200  # of 20,000
    assert picked[0] < 2500
    assert picked[-1] > 17_500
    assert max(b - a for a, b in pairwise(picked)) < 20_000 / len(picked) * 4
    assert read(checkpoint, path, 8) == found


def test_a_small_file_is_used_whole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row(index)) for index in range(500)), "utf-8")
    found = read(checkpoint, path, 1)
    assert not found.sampled
    assert numbers(checkpoint, found) == list(range(500))


@pytest.mark.usefixtures("small_limits")
def test_a_large_file_of_little_text_gives_what_it_has(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Its rows are mostly about something else."""
    path, other = tmp_path / "rows.jsonl", tmp_path / "other.txt"
    line = json.dumps({"text": "0123456789", "embedding": [0.123456] * 20})
    path.write_text(f"{line}\n" * 30, "utf-8")
    other.write_text("words " * 2000, "utf-8")
    found = read(checkpoint, path, 8)
    assert found.sampled
    assert len(found.borders) == 30
    sources = (CalibrationSource(path), CalibrationSource(other))
    windows = calibration_windows(checkpoint, CalibrationOptions(sources, 20 * SIZE, SIZE))
    assert len(windows) == 20  # what one lacks, the other gives


@pytest.mark.usefixtures("small_limits")
def test_a_large_prose_gives_sections_from_the_beginnings_of_lines(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"{i:06d} Zeile mit Wörtern 四\n" for i in range(5000)), "utf-8")
    found = read(checkpoint, path, 8)
    starts = numbers(checkpoint, found)
    assert len(starts) == 8
    assert starts == [0, *(pytest.approx(625 * i, abs=2) for i in range(1, 8))]
    one_line = tmp_path / "line.txt"
    one_line.write_text("四五" * 20_000, "utf-8")
    assert len(read(checkpoint, one_line, 8).borders) == 8


@pytest.mark.usefixtures("small_limits")
def test_long_documents_are_read_as_far_as_they_are_wanted(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"{index:06d} " + "words " * 20_000} for index in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = read(checkpoint, path, 8)
    assert 2 * 8 * SIZE <= len(found.tokens) < 40_000  # of 4.8 million
    assert numbers(checkpoint, found)[0] == 0


def test_a_token_that_the_model_lacks_is_named_with_its_place(tmp_path: Path) -> None:
    small = open_checkpoint(str(write_checkpoint(tmp_path / "model", vocab_size=257)))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "0 1 2"}\n{"text": "0 </s>"}\n', "utf-8")
    with pytest.raises(InputError, match=r"rows.jsonl: line 2: .*token 257 \('</s>'\).* has 257"):
        read(small, path, 1)


CASES = ("array.json", "bom.jsonl", "line_separator.jsonl", "alpaca.jsonl", "sharegpt.jsonl")


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="the shared inputs are not here")
@pytest.mark.parametrize("name", [*CASES, "conversations_1000.jsonl"])
def test_shared_inputs(name: str) -> None:
    folder = SHARED_CASES / "calibration-files"
    model = open_checkpoint(str(folder / "model"))
    options = CalibrationOptions((CalibrationSource(folder / name),), 1024)
    windows = calibration_windows(model, options)
    text = TextTokenizer(model.side_files, model.config).decode(windows[0])
    assert [len(window) for window in windows] == [512, 512]
    assert not {"{", '"', "["} & set(text)
    if name in ("alpaca.jsonl", "sharegpt.jsonl"):
        assert "user: warm river" in text
        assert "assistant: hile went" in text
