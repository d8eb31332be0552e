"""A smaller model guesses: the same tokens, no more than what pays, tokens that both know."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_refused, call_main
from native_models import exported, native_checkpoint
from outputs import quantized
from pair_session import PairSession
from small_models import LLAMA, write_checkpoint

from dsconv.runtime.generate import draft_length
from dsconv.runtime.generate.draft import DraftedSession
from dsconv.runtime.generate.draft_length import DraftLength
from dsconv.runtime.generate.generate import Generation, complete
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.sessions.native import NativeOptions, NativeSession, available_kernels
from dsconv.runtime.sessions.session import Session


class Clock:
    """A pass of the model takes a second, one of the draft a tenth."""

    def __init__(self, model: PairSession, draft: PairSession, each: float = 0.1) -> None:
        self._model, self._draft, self._each = model, draft, each

    def __call__(self) -> float:
        return self._model.passes + self._each * self._draft.passes


def pair(noise: float, vocabulary: int = 12) -> tuple[PairSession, PairSession]:
    """A model, and another one that mostly agrees."""
    model, draft = PairSession(vocabulary), PairSession(vocabulary)
    rng = np.random.default_rng(5)
    draft.table = model.table + noise * rng.standard_normal(model.table.shape, np.float32)
    return model, draft


def write(session: Session, sampling: Sampling, count: int = 80) -> Generation:
    return complete(session, [1, 2, 3], Sampler(sampling), (), count)


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0, 50.0])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.8, 0.9, seed=4), Sampling(1.3, seed=1)]
)
def test_the_tokens_are_those_without_a_draft(noise: float, sampling: Sampling) -> None:
    model, draft = pair(noise)
    alone = write(model, sampling)
    model.reset()
    drafted = DraftedSession(model, draft, 12, Clock(model, draft))
    assert write(drafted, sampling).tokens == alone.tokens
    drafted.truncate(drafted.position)
    assert model.cache == [1, 2, 3, *alone.tokens][: drafted.position]


def test_a_good_draft_saves_passes_and_a_bad_one_costs_few() -> None:
    model, draft = pair(0.0)
    drafted = DraftedSession(model, draft, 12, Clock(model, draft))
    write(drafted, Sampling(), 200)
    assert model.passes < 70
    assert drafted.accepted == drafted.proposed - len(drafted._ahead)
    model, draft = pair(50.0)
    drafted = DraftedSession(model, draft, 12, Clock(model, draft))
    write(drafted, Sampling(), 200)
    assert model.passes + 0.1 * draft.passes < 200 / 0.96


def test_a_draft_as_slow_as_the_model_is_left_alone() -> None:
    model, draft = pair(0.3)
    drafted = DraftedSession(model, draft, 12, Clock(model, draft, 1.0))
    write(drafted, Sampling(), 200)
    assert model.passes + draft.passes < 200 / 0.96


def test_the_distribution_is_the_models() -> None:
    """Of many seeds, the first tokens, against the model alone (chi-square, 5 standard errors)."""
    model, draft = pair(0.7, vocabulary=5)
    plain: Counter[tuple[int, ...]] = Counter()
    guessed: Counter[tuple[int, ...]] = Counter()
    for seed in range(1500):
        model.reset()
        plain[write(model, Sampling(1.0, seed=seed), 5).tokens[3:]] += 1
        model.reset()
        drafted = DraftedSession(model, draft, 5, Clock(model, draft))
        guessed[write(drafted, Sampling(1.0, seed=5000 + seed), 5).tokens[3:]] += 1
    keys = [key for key in {*plain, *guessed} if plain[key] + guessed[key] >= 10]
    terms = [(plain[k] - guessed[k]) ** 2 / (plain[k] + guessed[k]) for k in keys]
    assert sum(terms) < len(keys) + 5 * np.sqrt(2 * len(keys))


def test_a_draft_with_a_short_context_stops_guessing_there() -> None:
    model, draft = pair(0.0)
    draft.context_length = 40
    drafted = DraftedSession(model, draft, 12, Clock(model, draft))
    alone = write(model, Sampling(), 120)
    model.reset()
    assert write(drafted, Sampling(), 120).tokens == alone.tokens


def test_length_follows_acceptance_and_cost() -> None:
    length = DraftLength()
    for _ in range(3):
        length.plain(1.0)
    assert length.choose(1, 100) > 0
    for _ in range(60):
        length.checked(2, 1.2, 0.2, 1)
        length.outcome(0, wrong=True)
    assert length.choose(1, 100) == 0  # nothing is right, and the budget is spent
    good = DraftLength()
    for _ in range(3):
        good.plain(1.0)
    for _ in range(60):
        good.checked(4, 1.2, 0.2, 1)
        good.outcome(4, wrong=False)
    assert good.choose(1, 100) == draft_length.MOST
    assert good.choose(1, 3) == 3
    assert good.acceptance > 0.95
    assert good.tokens(2) == pytest.approx(1 + good.acceptance + good.acceptance**2, rel=1e-3)


@pytest.mark.parametrize("kernels", available_kernels())
def test_the_native_engine_writes_the_same(kernels: str, tmp_path: Path) -> None:
    model = native_checkpoint(tmp_path / "m", **LLAMA)
    whole = exported(model, tmp_path / "m.dsq")
    small = exported(quantized(model, tmp_path / "q", bits=4), tmp_path / "q.dsq")
    target, draft = (
        NativeSession(file, NativeOptions(threads=1, kernels=kernels)) for file in (whole, small)
    )
    count = 12 if kernels == "scalar" else 40
    for sampling in (Sampling(), Sampling(0.9, seed=3)):
        target.reset()
        alone = write(target, sampling, count)
        target.reset()
        drafted = DraftedSession(target, draft, 264)
        assert write(drafted, sampling, count).tokens == alone.tokens


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "m")
    exported(tmp_path / "m", tmp_path / "m.dsq")
    exported(quantized(tmp_path / "m", tmp_path / "q", bits=4), tmp_path / "q.dsq")
    asked = ["run", tmp_path / "m.dsq", "-p", "hello", "--raw", "--max-tokens", 30, "--json"]
    alone = call_main(monkeypatch, capsys, *asked)
    drafted = call_main(monkeypatch, capsys, *asked, "--draft", tmp_path / "q.dsq")
    assert drafted.code == 0, drafted.err
    assert drafted.json["tokens"] == alone.json["tokens"]
    assert set(drafted.json["speculation"]) == {"proposed", "accepted", "draft"}
    both = ["--draft", tmp_path / "q.dsq", "--speculate", 4]
    assert_refused(call_main(monkeypatch, capsys, *asked, *both), 2, "--speculate")
    other = write_checkpoint(tmp_path / "other")
    names = json.loads((other / "tokenizer.json").read_text())
    vocabulary = names["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(names))
    assert_refused(call_main(monkeypatch, capsys, *asked, "--draft", other), 4, "tokenizer")
