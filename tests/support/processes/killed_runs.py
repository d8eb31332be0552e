"""Runs of quantize that end at every point that is asked for, each with an output of its own.

Run as `python -m processes.killed_runs MODEL POINTS KIND`; POINTS: a JSON list of (what is counted,
how often). Forked before there is any thread; transformers, which starts slowly, is not imported.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logits import random_tokens

from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.inputs import GivenWindows
from dsconv.convert.quantize.journal import Journal
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.run_state import Listeners
from dsconv.convert.quantize.writer import QuantizedWriter

WINDOWS = [random_tokens(48, 160, seed) for seed in range(12)]
RUNS: dict[str, dict[str, Any]] = {
    "asymmetric": {"method": "gptq", "symmetric": False, "embedding_bits": 4},
    "scale-min": {"method": "gptq", "scheme_name": "scale-min", "bits": 3},
    "one stream": {"method": "gptq", "prefix_correction": 0.0},
    "not calibrated": {"method": "search", "embedding_bits": 8, "symmetric": False},
}


@dataclass
class Told:
    """What a run has told about its progress."""

    matrices: list[str] = field(default_factory=list)
    weights: int = 0

    def report(self, matrix: MatrixReport) -> None:
        self.matrices.append(matrix.module)

    def advance(self, weights: int) -> None:
        self.weights += weights


def run(source: Path, output: Path, kind: str, overwrite: bool = False, **changes: Any) -> Told:
    told = Told()
    options = QuantizeOptions(**{**RUNS[kind], **changes})
    windows = WINDOWS[:8] if options.method == "gptq" else []
    checkpoint = open_checkpoint(str(source))
    quantize_checkpoint(
        checkpoint,
        options,
        output,
        overwrite,
        GivenWindows(windows),
        Listeners(told.advance, told.report),
    )
    return told


def stop_after(kind: str, count: int) -> None:
    owner: Any = Journal if kind == "commit" else QuantizedWriter
    name = "append" if kind == "commit" else "write_quantized"
    work = getattr(owner, name)

    def counted(self: object, *arguments: object) -> None:
        nonlocal count
        work(self, *arguments)
        count -= 1
        if count == 0:
            os._exit(9)

    setattr(owner, name, counted)


def main(source: Path, points: list[tuple[str, int]], kind: str) -> None:
    Journal.due = lambda self: True  # type: ignore[method-assign]
    for counted, count in points:
        child = os.fork()
        if not child:
            stop_after(counted, count)
            run(source, source.with_name(f"{counted}{count}"), kind)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, (counted, count)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
