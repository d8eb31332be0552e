"""Quality per byte: mean KL of quantized checkpoints from their original, in one torch forward.

    python benchmarks/quality.py ORIGINAL TEXTS ARTIFACT [ARTIFACT ...]

TEXTS is a folder of .txt or .jsonl files held out from calibration (wiki, maths in chat form,
Chinese, reasoning traces, ...); every file gives WINDOWS windows of WINDOW tokens, spread over it.
Weights are dequantized to float32, so a runtime's own rounding does not count; activations that
the artifact rounds are rounded. Bits are over all parameters, scales and zero points included.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.runtime.calibration.text_windows import (
    CalibrationOptions,
    CalibrationSource,
    calibration_windows,
)
from dsconv.runtime.verify.metrics import TokenScores, compare, join, summarize

WINDOW, WINDOWS = 512, 2


def held_out(checkpoint: Checkpoint, folder: Path) -> dict[str, list[list[int]]]:
    """Windows of every file in the folder, by its name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".txt", ".jsonl"):
            source = (CalibrationSource(path),)
            options = CalibrationOptions(source, WINDOW * WINDOWS, WINDOW)
            found[path.stem] = calibration_windows(checkpoint, options)
    return found


def main(original: str, texts: Path, artifacts: list[str]) -> None:
    checkpoint = open_checkpoint(original)
    windows = held_out(checkpoint, texts)
    reference = TorchModel.load(checkpoint)
    expected = {
        name: [reference.forward(window).numpy()[:-1] for window in parts]
        for name, parts in windows.items()
    }
    print("bits    KL ± s.e.          p99     top-1  ppl ×  | KL by text")
    for artifact in artifacts:
        model = TorchModel.load(open_checkpoint(artifact))
        scores: dict[str, TokenScores] = {}
        for name, parts in windows.items():
            pairs = zip(parts, expected[name], strict=True)
            scores[name] = join(
                [compare(logits, model.forward(w).numpy()[:-1], w[1:]) for w, logits in pairs]
            )
        total = summarize(join(list(scores.values())))
        bits = 8 * describe(artifact).size_bytes / checkpoint.parameter_count
        ratio = total.artifact_perplexity / total.reference_perplexity
        by_text = ", ".join(f"{name} {score.kl.mean():.4f}" for name, score in scores.items())
        print(
            f"{bits:.3f}  {total.kl_mean:.5f} ± {total.kl_stderr:.5f}  {total.kl_p99:.3f}  "
            f"{total.top1_agreement:.4f}  {ratio:.4f} | {by_text} | {artifact}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
