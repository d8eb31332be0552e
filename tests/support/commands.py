"""The commands that write outputs, and what they read: for tests that disturb them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from command_line import Outcome
from small_models import gpt2_checkpoint

from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint

CALIBRATED = ("--method", "gptq", "--calibration", "text", "--calibration-tokens")


@dataclass(frozen=True)
class Case:
    """A command line, in which `model`, `quantized` and `text` stand for paths.

    stride: the default run takes every so many-th system call of a kind.
    """

    name: str
    arguments: tuple[str, ...]
    output: str = "out"
    overwrite: bool = False
    stride: int = 8

    def command(self, sources: Mapping[str, str], place: Path) -> list[str]:
        arguments = [sources.get(argument, argument) for argument in self.arguments]
        return [*arguments, "-o", str(place / self.output)]


CASES = [
    Case("rtn", ("quantize", "model", "--method", "rtn"), stride=12),
    Case("calibrated", ("quantize", "model", *CALIBRATED, "64"), stride=17),
    Case("tuned", ("quantize", "model", *CALIBRATED, "1024", "--tuning-epochs", "1"), stride=60),
    Case("onnx", ("export", "quantized", "--format", "onnx"), stride=4),
    Case("onnx-copied", ("export", "model", "--format", "onnx", "--copy"), stride=6),
    Case("native", ("export", "quantized", "--format", "native"), "out.dsq", stride=5),
    Case("gguf", ("export", "quantized", "--format", "gguf"), "out.gguf", stride=25),
    Case("gguf-folder", ("export", "quantized", "--format", "gguf"), stride=25),
    Case("compressed-tensors", ("export", "quantized", "--format", "compressed-tensors"), stride=6),
    Case("rtn-over", ("quantize", "model", "--method", "rtn"), overwrite=True, stride=16),
    Case("onnx-over", ("export", "quantized", "--format", "onnx"), overwrite=True, stride=5),
    Case("native-over", ("export", "quantized", "--format", "native"), "out.dsq", True, stride=6),
]


def make_sources(folder: Path) -> dict[str, str]:
    """Word of a command line -> path."""
    model = gpt2_checkpoint(folder / "model")
    options = QuantizeOptions(method="rtn", head_bits=8)
    quantize_checkpoint(open_checkpoint(str(model)), options, folder / "quantized")
    (folder / "text").write_text("The quick brown fox jumps over the lazy dog. " * 30)
    return {name: str(folder / name) for name in ("model", "quantized", "text")}


def assert_clean_failure(outcome: Outcome, code: int, *words: str) -> None:
    """Perhaps warnings, then one error and one hint, and the promised exit code."""
    assert outcome.code == code, (outcome.code, outcome.err)
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["error", "hint"], outcome.err
    assert outcome.err.count("error: ") == 1
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
