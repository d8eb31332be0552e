"""Peak memory and time of a calibrated quantization, on random tokens.

    python benchmarks/calibration_memory.py CHECKPOINT OUT TOKENS MAX_MEMORY_GIB

For checkpoints of random_checkpoint.py, which need no tokenizer: what a token is does not matter to
the cost. Prints a line per matrix, and the peak resident memory of this process.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.inputs import GivenWindows
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.run_state import Listeners
from dsconv.runtime.memory import peak_rss_bytes

WINDOW = 512


def main(model: str, output: Path, tokens: int, max_memory: float) -> None:
    checkpoint = open_checkpoint(model)
    vocabulary = checkpoint.decoder.config.vocab_size
    random = np.random.default_rng(0)
    windows = random.integers(0, vocabulary, (tokens // WINDOW, WINDOW)).tolist()
    options = QuantizeOptions(method="gptq", max_memory=int(max_memory * 2**30))
    start = time.perf_counter()

    def report(matrix: MatrixReport) -> None:
        peak = peak_rss_bytes() / 2**30
        print(
            f"{time.perf_counter() - start:8.0f} s  {peak:6.2f} GiB  {matrix.module}  "
            f"{matrix.sqnr:.2f} dB",
            flush=True,
        )

    quantize_checkpoint(
        checkpoint, options, output, True, GivenWindows(windows), Listeners(report=report)
    )
    print(f"{time.perf_counter() - start:.0f} s, peak {peak_rss_bytes() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
