"""KL tuning: gradients against differences, held-out KL, the same bytes however it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from logits import random_tokens
from outputs import folder_hash
from reference_models import tiny_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.inputs import GivenWindows
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.tune import TrainableMatrix, TunedModel, TuningOptions, tune
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.scale_min import ScaleMin, ScaleMinMatrix
from dsconv.quant.schemes import Scheme

WINDOWS = [random_tokens(48, 160, seed) for seed in range(24)]
SCHEMES: list[Scheme] = [
    IntegerScheme(4, 32),
    IntegerScheme(4, 32, False),
    IntegerScheme(4, -1),
    IntegerScheme(8, 128),
    ScaleMin(3),
    ScaleMin(4),
]


def quantized_matrix(scheme: Scheme, columns: int) -> IntegerMatrix | ScaleMinMatrix:
    weights = np.random.default_rng(1).normal(0, 0.1, (6, columns)).astype(np.float32)
    result = scheme.search(weights)
    assert isinstance(result, IntegerMatrix | ScaleMinMatrix)
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [64, 100, 576])
def test_untouched_weights_are_the_dequantized_ones(scheme: Scheme, columns: int) -> None:
    quantized = quantized_matrix(scheme, columns)
    weights = TrainableMatrix(quantized).weights(torch.float32).numpy()
    np.testing.assert_allclose(weights, quantized.dequantize(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("columns", [64, 100, 576])
def test_gradients_are_those_of_autograd(scheme: Scheme, columns: int) -> None:
    """d/dδ of Σ a·w for random a: w is linear in exp(δ), so its derivative is known."""
    quantized = quantized_matrix(scheme, columns)
    matrix = TrainableMatrix(quantized)
    a = torch.from_numpy(np.random.default_rng(2).normal(size=(6, columns)).astype(np.float32))
    found = matrix.gradients(a)
    for index, delta in enumerate(matrix.deltas):
        base = matrix.weights(torch.float32)
        step = 0.25  # large, for float16 units; the function is linear in the unit
        row, column = 3, delta.shape[1] - 1
        delta[row, column] += step
        moved = matrix.weights(torch.float32)
        delta[row, column] -= step
        slope = float((a * (moved - base)).sum()) / (np.exp(step) - 1)
        assert slope == pytest.approx(float(found[index][row, column]), rel=2e-2, abs=2e-3)


def run(checkpoint: Checkpoint, scheme: Scheme, threads: int, rate: float) -> object:
    matrices = {
        name: scheme.search(checkpoint.rows(name))
        for name, parameter in checkpoint.parameters.items()
        if len(parameter.shape) == 2 and "embed" not in name
    }
    with single_threaded_libraries(), Workers(threads) as workers:
        model = TunedModel(checkpoint, checkpoint.decoder, matrices, torch.float32)  # type: ignore[arg-type]
        return tune(model, WINDOWS, TuningOptions(3, rate), workers)


@pytest.mark.parametrize("scheme", [IntegerScheme(4, 32), ScaleMin(3)], ids=str)
def test_tuning_lowers_the_held_out_kl_and_threads_do_not_show(
    scheme: Scheme, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "qwen2")))
    first, second = run(checkpoint, scheme, 1, 1e-3), run(checkpoint, scheme, 2, 1e-3)
    assert first.kl_after < first.kl_before  # type: ignore[attr-defined]
    assert first.kl_after == second.kl_after  # type: ignore[attr-defined]
    for name, matrix in first.matrices.items():  # type: ignore[attr-defined]
        other = second.matrices[name]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(matrix.dequantize(), other.dequantize())


def test_tuning_never_ends_worse_than_it_began(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "llama")))
    result = run(checkpoint, IntegerScheme(4, 32), 1, 3.0)
    assert result.kl_after <= result.kl_before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options",
    [{"scheme_name": "scale-min", "embedding_bits": 4}, {"symmetric": False}],
    ids=["scale-min", "integer"],
)
def test_a_run_with_tuning_keeps_its_codes(options: dict[str, object], tmp_path: Path) -> None:
    """Two windows again and again: what is held out is what was trained on, so there is a gain."""
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "llama")))
    windows = WINDOWS[:2] * 12

    def quantize(name: str, epochs: int, threads: int = 1) -> Checkpoint:
        chosen = QuantizeOptions(method="gptq", tuning_epochs=epochs, threads=threads, **options)  # type: ignore[arg-type]
        quantize_checkpoint(checkpoint, chosen, tmp_path / name, preparation=GivenWindows(windows))
        return open_checkpoint(str(tmp_path / name))

    plain, tuned = quantize("plain", 0), quantize("tuned", 12)
    quantize("again", 12, threads=2)
    assert folder_hash(tmp_path / "tuned") == folder_hash(tmp_path / "again")
    assert not list((tmp_path / "tuned").glob("*tuned*"))
    changed = 0
    for name, parameter in plain.parameters.items():
        if plain.scheme(name) is None:
            continue
        rows = parameter.shape[0]
        a, b = plain.quantized_rows(name, 0, rows), tuned.quantized_rows(name, 0, rows)
        np.testing.assert_array_equal(a.codes, b.codes)
        changed += bool((a.dequantize() != b.dequantize()).any())
    assert changed
