"""Bits per matrix: the knapsack against brute force, the estimates against measured KL."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from logits import mean_divergence, random_tokens
from reference_models import tiny_checkpoint

from dsconv.convert.forward.torch_ops import KeyValueCache, TorchOps, load_parameter
from dsconv.convert.forward.workers import Workers
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.choose_bits import choose_bits
from dsconv.convert.quantize.inputs import GivenWindows
from dsconv.convert.quantize.options import BitsTarget, QuantizeOptions
from dsconv.convert.quantize.plan import read_allocation
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.sensitivity import MatrixUses, estimated_kl, sensitivities
from dsconv.errors import InputError, UsageError
from dsconv.quant.allocation import Option, allocate, smallest_within
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.labels import label_of, parse_label
from dsconv.quant.scale_min import ScaleMin

WINDOWS = [random_tokens(64, 160, seed) for seed in range(8)]


def random_items(seed: int) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Option(int(size), float(loss))
            for size, loss in zip(
                np.cumsum(rng.integers(1, 9, 4)), np.sort(rng.random(4))[::-1], strict=True
            )
        ]
        for _ in range(5)
    ]


def brute_force(items: list[list[Option]], budget: int) -> float:
    return min(
        sum(option.loss for option in choice)
        for choice in itertools.product(*items)
        if sum(option.size for option in choice) <= budget
    )


@pytest.mark.parametrize("seed", range(8))
def test_allocation_against_brute_force(seed: int) -> None:
    items = random_items(seed)
    smallest = sum(options[0].size for options in items)
    largest = sum(options[-1].size for options in items)
    assert allocate(items, smallest - 1) is None
    optimal = 0
    for budget in range(smallest, largest + 1):
        choice = allocate(items, budget)
        assert choice is not None
        taken = [options[index] for options, index in zip(items, choice, strict=True)]
        assert sum(option.size for option in taken) <= budget
        loss, best = sum(option.loss for option in taken), brute_force(items, budget)
        # A greedy choice is at most one step short of the best.
        assert loss <= best + max(options[0].loss - options[-1].loss for options in items)
        optimal += loss <= best + 1e-12
    assert optimal >= 0.25 * (largest + 1 - smallest)


def test_dominated_options_are_never_chosen() -> None:
    items = [[Option(1, 1.0), Option(2, 2.0), Option(3, 0.0)]]
    assert [allocate(items, budget) for budget in (1, 2, 3, 9)] == [[0], [0], [2], [2]]


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_choice_within_a_loss(seed: int) -> None:
    items = random_items(seed)

    def loss(choice: list[int]) -> float:
        return sum(options[index].loss for options, index in zip(items, choice, strict=True))

    def size(choice: list[int]) -> int:
        return sum(options[index].size for options, index in zip(items, choice, strict=True))

    best = [len(options) - 1 for options in items]
    assert smallest_within(items, loss(best) - 1e-6) is None
    for limit in np.linspace(loss(best) + 1e-9, 5, 7):
        choice = smallest_within(items, float(limit))
        assert choice is not None
        assert loss(choice) <= limit
        smaller = allocate(items, size(choice) - 1)
        assert smaller is None or loss(smaller) > limit


@pytest.mark.parametrize(
    "scheme",
    [
        None,
        ScaleMin(3),
        IntegerScheme(4, 32),
        IntegerScheme(8, -1),
        IntegerScheme(4, 64, False),
        IntegerScheme(8, -1, False),
    ],
    ids=str,
)
def test_labels_go_back(scheme: IntegerScheme | ScaleMin | None) -> None:
    assert parse_label(label_of(scheme)) == scheme


@pytest.mark.parametrize("label", ["", "int4", "scale-min-9", "int5-g32", "int4-g33", "int4-g32-x"])
def test_bad_labels_are_refused(label: str) -> None:
    with pytest.raises((InputError, UsageError)):
        parse_label(label)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "lm_head.weight",
    ],
)
def test_estimates_are_near_the_measured_kl(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "qwen2")))
    with Workers(1) as workers:
        found = sensitivities(checkpoint, WINDOWS, torch.float32, workers)
        module = name.rpartition(".")[0]
        scheme = ScaleMin(4)
        uses = MatrixUses(checkpoint, name, [found[module]])
        (estimate,) = estimated_kl(uses, [scheme], workers)
    use = found[module]
    weights = {n: load_parameter(checkpoint, n, torch.float32) for n in checkpoint.parameters}
    is_table = "embed" in name
    importance = None if is_table else (use.inputs / use.positions).astype(np.float32)
    quantized = scheme.search(weights[name].numpy(), importance).dequantize()
    changed = {**weights, name: torch.from_numpy(quantized)}

    def logits(of: dict[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                checkpoint.decoder.forward(
                    TorchOps(of.__getitem__, torch.tensor(window), KeyValueCache())
                )[0]
                for window in WINDOWS
            ]
        return torch.cat(parts).double().numpy()

    measured = mean_divergence(logits(weights), logits(changed))
    assert measured / 2.5 <= estimate <= measured * 2.5


@pytest.mark.parametrize("tied", [False, True])
def test_a_target_is_reached_written_down_and_given_back(tied: bool, tmp_path: Path) -> None:
    source = tiny_checkpoint(
        tmp_path / "model", "llama", tie_word_embeddings=tied, hidden_size=256, head_dim=64
    )
    checkpoint = open_checkpoint(str(source))
    options = QuantizeOptions(scheme_name="scale-min", method="gptq", threads=1)
    chosen = choose_bits(checkpoint, options, BitsTarget(bits_per_weight=5.0), WINDOWS)
    two_threads = QuantizeOptions(scheme_name="scale-min", method="gptq", threads=2)
    again = choose_bits(checkpoint, two_threads, BitsTarget(bits_per_weight=5.0), WINDOWS)
    assert chosen == again
    labels = chosen.labels
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        assert len({labels[f"{prefix}.self_attn.{name}_proj"] for name in "qkv"}) == 1
        assert len({labels[f"{prefix}.mlp.{name}_proj"] for name in ("gate", "up")}) == 1
    assert len(set(labels.values())) > 1
    with_labels = QuantizeOptions(
        scheme_name="scale-min", method="gptq", threads=1, allocation=labels
    )
    result = quantize_checkpoint(
        checkpoint, with_labels, tmp_path / "out", preparation=GivenWindows(WINDOWS)
    )
    assert 4.6 <= result.bits_per_weight <= 5.0
    manifest = json.loads((tmp_path / "out/dsconv.json").read_text())
    assert manifest["recipe"]["allocation"] == labels
    assert read_allocation(tmp_path / "out/dsconv.json") == labels


def test_targets_that_cannot_be_met(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "model", "llama")))
    options = QuantizeOptions(threads=1)
    for target in (
        BitsTarget(bits_per_weight=2.0),
        BitsTarget(size=1000),
        BitsTarget(max_kl=1e-30),
    ):
        if target.max_kl is None:
            with pytest.raises(UsageError, match="smallest choice"):
                choose_bits(checkpoint, options, target, WINDOWS)
    with pytest.raises(UsageError, match="several targets"):
        BitsTarget(4.5, 1000)
    with pytest.raises(UsageError, match="positive"):
        BitsTarget(bits_per_weight=-1)
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(InputError, match=r"recipe\.allocation"):
        read_allocation(tmp_path / "no.json")
