"""Sampling against a slow textbook twin and against transformers' filters."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError, UsageError
from dsconv.runtime.generate.model_settings import from_generation_config
from dsconv.runtime.generate.sampling import Sampler, Sampling, filtered

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6, top_p=0.95),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=0.8, top_k=12, top_p=0.5),
    Sampling(temperature=2.0, top_p=0.999),
    Sampling(temperature=1e-5, top_p=0.9),
    Sampling(temperature=1.0, top_p=1e-6),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=10_000),
]


def logits_of(size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def textbook(logits: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
    """Token -> probability by the definitions, over plain Python numbers."""
    scaled = {token: float(value) / sampling.temperature for token, value in enumerate(logits)}
    if 0 < sampling.top_k < len(scaled):
        least = sorted(scaled.values())[-sampling.top_k]
        scaled = {token: value for token, value in scaled.items() if value >= least}
    largest = max(scaled.values())
    weights = {token: math.exp(value - largest) for token, value in scaled.items()}
    total = math.fsum(weights.values())
    kept: dict[int, float] = {}
    for token in sorted(weights, key=lambda token: (-weights[token], token)):
        if kept and math.fsum(kept.values()) >= sampling.top_p * total:
            break
        kept[token] = weights[token]
    total = math.fsum(kept.values())
    return {token: weight / total for token, weight in kept.items()}


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("size", [1, 2, 40, 700])
def test_candidates_are_the_textbook_ones(sampling: Sampling, size: int) -> None:
    for seed in range(5):
        logits = logits_of(size, seed)
        tokens, probabilities = filtered(logits, sampling)
        expected = textbook(logits, sampling)
        assert set(tokens.tolist()) == set(expected)
        for token, probability in zip(tokens.tolist(), probabilities.tolist(), strict=True):
            assert probability == pytest.approx(expected[token], rel=1e-9)


@pytest.mark.parametrize("sampling", [each for each in SETTINGS if each.temperature > 1e-3])
def test_candidates_are_those_of_transformers(sampling: Sampling) -> None:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for size in (50, 3000):
        logits = logits_of(size, 7)
        scores = torch.from_numpy(logits.astype(np.float64))[None]
        unused = torch.zeros((1, 1), dtype=torch.long)
        scores = TemperatureLogitsWarper(sampling.temperature)(unused, scores)
        if sampling.top_k:
            scores = TopKLogitsWarper(sampling.top_k)(unused, scores)
        scores = TopPLogitsWarper(sampling.top_p)(unused, scores)
        kept = torch.isfinite(scores[0]).nonzero()[:, 0].tolist()
        assert sorted(filtered(logits, sampling)[0].tolist()) == kept


@pytest.mark.parametrize("sampling", SETTINGS)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    logits, draws = logits_of(30, 3), 20_000
    expected = textbook(logits, sampling)
    sampler = Sampler(sampling.with_overrides(seed=11))
    counts = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=30)
    assert set(np.flatnonzero(counts)) <= set(expected)
    # Pearson's statistic has mean k-1 and variance 2(k-1); rare tokens are left out of it.
    common = [token for token, probability in expected.items() if probability * draws >= 5]
    pearson = sum(
        (counts[token] - draws * expected[token]) ** 2 / (draws * expected[token])
        for token in common
    )
    freedom = len(common)
    assert pearson < freedom + 5 * math.sqrt(2 * freedom)


def test_equal_logits() -> None:
    flat = np.zeros(1000, np.float32)
    assert Sampler(Sampling()).choose(flat) == 0
    assert filtered(flat, Sampling(temperature=1, top_k=3))[0].size == 1000  # as transformers
    tokens, _ = filtered(flat, Sampling(temperature=1, top_p=0.2505))
    assert tokens.tolist() == list(range(251))


def test_a_seed_repeats_and_another_differs() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=seed))
        return [sampler.choose(logits_of(500, step)) for step in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_greedy_and_nearly_greedy_take_the_largest() -> None:
    logits = logits_of(1000)
    logits[123] = 1e30  # near the limits of float32: the softmax must not overflow
    for temperature in (0.0, 1e-12, 1.0):
        assert Sampler(Sampling(temperature=temperature)).choose(logits) == 123


def test_large_vocabulary_is_fast() -> None:
    logits = logits_of(152_064)
    for sampling in SETTINGS[:5]:
        sampler = Sampler(sampling)
        start = time.perf_counter()
        for _ in range(10):
            sampler.choose(logits)
        assert time.perf_counter() - start < 1.0  # 2 ms each here; sorting all takes 15


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
@pytest.mark.parametrize("sampling", [*SETTINGS[:2], Sampling()])
def test_logits_that_are_no_numbers(value: float, word: str, sampling: Sampling) -> None:
    logits = logits_of(10)
    logits[4] = value
    with pytest.raises(InputError, match=f"the model produced {word}.*1 of 10"):
        Sampler(sampling).choose(logits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling().with_overrides(**wrong)  # type: ignore[arg-type]
    assert next(iter(wrong)) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.6, "top_p": 0.95}, Sampling(0.0, 0.95)),
        ({"do_sample": False, "temperature": 0.6}, Sampling()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "_from_model_config": True},
            Sampling(0.6, 0.95),
        ),
        ({"do_sample": True, "top_k": 20}, Sampling(1.0, 1.0, 20)),
        ({"do_sample": True, "temperature": None, "top_k": None}, Sampling(1.0)),
    ],
)
def test_from_generation_config(config: dict[str, object], expected: Sampling) -> None:
    assert from_generation_config(ConfigReader(config, "generation_config.json")) == expected


@pytest.mark.parametrize("config", [{"top_p": 0}, {"temperature": "hot"}, {"top_k": -3}])
def test_broken_generation_config(config: dict[str, object]) -> None:
    with pytest.raises(InputError, match="generation_config.json: " + next(iter(config))):
        from_generation_config(ConfigReader(config, "generation_config.json"))


def test_overrides() -> None:
    base = Sampling(0.6, 0.95, 20, 3)
    assert base.with_overrides() == base
    assert base.with_overrides(temperature=0.0, seed=0) == Sampling(0.0, 0.95, 20, 0)
    assert base.with_overrides(top_k=0, top_p=1.0) == Sampling(0.6, 1.0, 0, 3)
