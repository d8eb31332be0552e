"""The KL that is summed block by block against float64 over whole tables of logits."""

from __future__ import annotations

import pytest
import torch

from dsconv.convert.quantize.calibration.divergence import mean_divergence


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_blocks_of_the_vocabulary_add_up(block: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    original, head = (torch.randn(n, 16, generator=generator) for n in (9, 100))
    quantized = original + 0.1 * torch.randn(9, 16, generator=generator)
    head *= scale
    other = head + 0.05 * scale * torch.randn(100, 16, generator=generator)
    rows = ((head[i : i + block], other[i : i + block]) for i in range(0, 100, block))
    p = (original.double() @ head.double().T).log_softmax(-1)
    q = (quantized.double() @ other.double().T).log_softmax(-1)
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert mean_divergence(original, quantized, rows) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_same_model_diverges_by_nothing() -> None:
    x, head = torch.randn(5, 8), torch.randn(30, 8)
    assert mean_divergence(x, x, [(head, head)]) == pytest.approx(0, abs=1e-6)
