"""Text and bits that a calibrated run keeps, and does not make again after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from logits import random_tokens
from outputs import folder_hash
from reference_models import tiny_checkpoint

from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.inputs import PREPARED, GivenWindows, Prepared, prepared
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.run_state import Listeners
from dsconv.errors import OutputError

WINDOWS = [random_tokens(32, 160, seed) for seed in range(4)]
LABELS = {"model.layers.0.self_attn.o_proj": "int8-g32"}


@dataclass
class Counting:
    """A preparation that tells how often it was made."""

    text: str = "prose"
    made: int = 0
    purpose: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.purpose = {"sources": [{"name": self.text}]}

    def make(self) -> Prepared:
        self.made += 1
        return Prepared(WINDOWS, LABELS)


def run(source: Path, output: Path, preparation: Counting, stop_after: int | None = None) -> None:
    seen: list[str] = []

    def report(matrix: MatrixReport) -> None:
        seen.append(matrix.module)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    quantize_checkpoint(
        open_checkpoint(str(source)),
        QuantizeOptions(method="gptq"),
        output,
        preparation=preparation,
        listeners=Listeners(report=report),
    )


def test_a_resumed_run_reads_what_was_prepared(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    run(source, tmp_path / "whole", Counting())
    first, second = Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", first, stop_after=6)
    assert (tmp_path / "out.partial" / PREPARED).exists()
    run(source, tmp_path / "out", second)
    assert (first.made, second.made) == (1, 0)
    assert folder_hash(tmp_path / "out") == folder_hash(tmp_path / "whole")
    manifest = json.loads((tmp_path / "out" / "dsconv.json").read_text(encoding="utf-8"))
    assert manifest["recipe"]["allocation"] == LABELS
    assert manifest["facts"]["calibration"] == {"sources": [{"name": "prose"}]}


def test_another_text_is_refused_by_name(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "model", "llama")
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", Counting(), stop_after=6)
    with pytest.raises(OutputError, match=r"calibration sources .*prose.*verse"):
        run(source, tmp_path / "out", Counting("verse"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"windows": []}'])
def test_a_damaged_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / PREPARED).write_text(content)
    with pytest.raises(OutputError, match="damaged"):
        prepared(tmp_path, Counting())


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    class Failing(Counting):
        def make(self) -> Prepared:
            raise MemoryError

    with pytest.raises(MemoryError):
        prepared(tmp_path, Failing())
    assert not list(tmp_path.iterdir())


def test_given_windows_are_not_written(tmp_path: Path) -> None:
    assert prepared(tmp_path, GivenWindows(WINDOWS)).windows == WINDOWS
    assert not list(tmp_path.iterdir())
    assert GivenWindows(WINDOWS).purpose != GivenWindows(WINDOWS[1:]).purpose
