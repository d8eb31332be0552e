"""Speculation: the same tokens in fewer passes, the same distribution, the cache in order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command_line import call_main
from numpy.typing import NDArray
from pair_session import PairSession
from small_models import write_checkpoint

from dsconv.convert.formats.native.export import export_native
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import UsageError
from dsconv.runtime.generate.generate import Generation, complete
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.generate.speculation import (
    MAX_CANDIDATES,
    NGRAM_SIZES,
    PromptLookup,
    SpeculativeSession,
)
from dsconv.runtime.sessions.load import load
from dsconv.runtime.sessions.onnx import OnnxSession
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.sessions.torch_reference import TorchSession


def run(
    session: Session,
    prompt: Sequence[int],
    sampling: Sampling,
    max_tokens: int = 60,
    stop_ids: Sequence[int] = (),
) -> Generation:
    session.reset()
    return complete(session, prompt, Sampler(sampling), stop_ids, max_tokens)


# ---------------------------------------------------------------- finding candidates


def searched(tokens: list[int], count: int) -> list[int]:
    """The candidates by looking at every earlier place, longest n-gram first."""
    for size in NGRAM_SIZES:
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                copied = list(tokens)
                for i in range(count):
                    copied.append(copied[end + i])
                return copied[len(tokens) :]
    return []


@pytest.mark.parametrize("vocabulary", [1, 2, 4, 12])
def test_candidates_are_those_of_a_plain_search(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    lookup, tokens, found = PromptLookup(), [], 0
    for _ in range(120):
        token = int(rng.integers(vocabulary))
        lookup.append([token])
        tokens.append(token)
        if rng.random() < 0.05:
            del tokens[len(tokens) // 2 :]
            lookup.truncate(len(tokens))
        count = int(rng.integers(6))
        assert lookup.candidates(count) == searched(tokens, count)
        found += len(lookup.candidates(count))
    assert found


def test_the_end_of_the_text_does_not_find_itself() -> None:
    lookup = PromptLookup()
    lookup.append([1, 2, 3, 4])
    assert lookup.candidates(3) == []
    lookup.append([2, 3])
    assert lookup.candidates(5) == [4, 2, 3, 4, 2]  # what it copies goes on with itself


# ---------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("candidates", [1, 2, 5, MAX_CANDIDATES])
@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0])
def test_the_same_seed_gives_the_same_tokens_in_fewer_passes(
    candidates: int, temperature: float
) -> None:
    proposed = accepted = 0
    for seed in range(12):
        sampling = Sampling(temperature, seed=seed, top_p=0.95)
        plain, inner = PairSession(4), PairSession(4)
        session = SpeculativeSession(inner, candidates)
        wanted = run(plain, [0, 1, 2, 0, 1], sampling)
        found = run(session, [0, 1, 2, 0, 1], sampling)
        assert found.tokens == wanted.tokens
        assert session.position == plain.position
        assert inner.passes == plain.passes - session.accepted
        session.truncate(session.position)
        assert inner.cache == plain.cache
        proposed, accepted = proposed + session.proposed, accepted + session.accepted
    assert 0 < accepted < proposed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("speculation") / "m", torch_dtype="float32")


@pytest.mark.parametrize("runtime", ["torch", "contrib", "std24", "std17"])
def test_greedy_text_of_a_model_stays_the_same(runtime: str, tmp_path: Path) -> None:
    # So few tokens that a random model repeats itself.
    folder = write_checkpoint(tmp_path / "m", torch_dtype="float32", vocab_size=6)
    opened = open_checkpoint(str(folder))
    inner: Session
    if runtime == "torch":
        inner = TorchSession(opened, threads=1)
    else:
        export_onnx(opened, ExportOptions(runtime, accuracy_level=0), tmp_path / "onnx")
        inner = OnnxSession(tmp_path / "onnx", threads=1)
    session = SpeculativeSession(inner, 5)
    prompts = np.random.default_rng(1).integers(0, 6, (3, 7)).tolist()
    for prompt in prompts:
        repeated = prompt + prompt[:5]
        wanted = run(inner, repeated, Sampling(), 90)
        assert run(session, repeated, Sampling(), 90).tokens == wanted.tokens
    assert 0 < session.accepted < session.proposed


@pytest.mark.parametrize("runtime", ["torch", "contrib", "std24", "std17"])
def test_a_cut_cache_goes_on_as_if_nothing_had_been_there(
    runtime: str, checkpoint: Path, tmp_path: Path
) -> None:
    opened = open_checkpoint(str(checkpoint))
    session: Session = TorchSession(opened, threads=1)
    tokens = np.random.default_rng(2).integers(0, 250, 30).tolist()
    wanted = session.score(tokens)
    if runtime != "torch":
        export_onnx(opened, ExportOptions(runtime, accuracy_level=0), tmp_path / "onnx")
        session = OnnxSession(tmp_path / "onnx", threads=1)
    close = {"atol": 1e-3 * float(np.abs(wanted).max())}
    session.reset()
    session.prefill(tokens[:9])
    np.testing.assert_allclose(session.extend([*tokens[9:12], 7, 8, 9])[:3], wanted[9:12], **close)
    session.decode(3)
    session.truncate(12)
    assert session.position == 12
    np.testing.assert_allclose(session.decode(tokens[12]), wanted[12], **close)
    np.testing.assert_allclose(session.extend(tokens[13:20]), wanted[13:20], **close)
    session.truncate(20)
    session.truncate(0)
    np.testing.assert_allclose(session.prefill(tokens), wanted[-1], **close)


@pytest.mark.parametrize("kv", ["fp16", "int8"])
def test_the_native_engine_gives_the_same_bits(kv: str, tmp_path: Path) -> None:
    """So that speculation is exact there, not only up to rounding."""
    pytest.importorskip("dsconv.runtime._native", exc_type=ImportError)
    folder = write_checkpoint(tmp_path / "m", vocab_size=6)
    quantize_checkpoint(open_checkpoint(str(folder)), QuantizeOptions(), tmp_path / "q")
    export_native(open_checkpoint(str(tmp_path / "q")), tmp_path / "m.dsq")
    inner = load(str(tmp_path / "m.dsq"), threads=1, kv=kv).session
    tokens = np.random.default_rng(2).integers(0, 6, 40).tolist()
    inner.prefill(tokens[:20])
    wanted = np.stack([inner.decode(token).copy() for token in tokens[20:]])
    inner.truncate(20)
    assert inner.position == 20
    np.testing.assert_array_equal(inner.extend(tokens[20:]), wanted)
    for length in (33, 20, 25):  # the last is longer than what is there
        inner.truncate(length)
    np.testing.assert_array_equal(inner.decode(tokens[20]), wanted[0])
    session = SpeculativeSession(inner, 5)
    plain = run(inner, tokens, Sampling(1.0, seed=3), 90)
    assert run(session, tokens, Sampling(1.0, seed=3), 90).tokens == plain.tokens
    assert 0 < session.accepted < session.proposed


# ---------------------------------------------------------------- the same distribution


class Trusting(SpeculativeSession):
    """Takes its guesses for certain: the fault that the test of the distribution must see."""

    def decode(self, token: int) -> NDArray[np.float32]:
        logits = super().decode(token)
        if self._ahead:
            certain = np.full_like(logits, -1e9)
            certain[self._ahead[0][0]] = 0
            return certain
        return logits


def chi_square(
    kind: type[SpeculativeSession], prompt: list[int], length: int, runs: int
) -> tuple[float, int]:
    """-> (statistic of all texts of `length` tokens against the table's own, its freedom)."""
    model = PairSession(3, sharpness=0.8)
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(runs):
        session = kind(model, 3)
        seen[run(session, prompt, Sampling(1.0, seed=seed), length).tokens] += 1
    statistic = 0.0
    texts = list(itertools.product(range(3), repeat=length))
    for text in texts:
        probability, context = 1.0, list(prompt)
        for token in text:
            logits = model.table[context[-2], context[-1]].astype(np.float64)
            probability *= np.exp(logits[token]) / np.exp(logits).sum()
            context.append(token)
        statistic += (seen[text] - runs * probability) ** 2 / (runs * probability)
    return statistic, len(texts) - 1


def test_sampling_keeps_the_distribution() -> None:
    """Whole texts of four tokens, counted, against the product of the model's probabilities."""
    prompt = [0, 1, 2, 1, 0, 1, 2, 1, 0]
    statistic, freedom = chi_square(SpeculativeSession, prompt, 4, 4000)
    # The chi-square distribution's mean is its freedom, its variance twice that.
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    wrong, _ = chi_square(Trusting, prompt, 4, 400)
    assert wrong > freedom + 20 * (2 * freedom) ** 0.5


# ---------------------------------------------------------------- ends


def test_an_end_token_among_the_accepted_ends_the_text() -> None:
    plain, inner = PairSession(6, sharpness=9), PairSession(6, sharpness=9)
    prompt = [0, 1, 2, 3, 4, 5]
    text = run(plain, prompt, Sampling(), 200).tokens
    session = SpeculativeSession(inner, 8)
    for stop in range(6):
        wanted = run(plain, prompt, Sampling(), 200, [stop])
        found = run(session, prompt, Sampling(), 200, [stop])
        assert (found.tokens, found.stop_reason) == (wanted.tokens, wanted.stop_reason)
        session.truncate(session.position)
        assert inner.cache == plain.cache
    assert session.accepted > len(text) / 2


@pytest.mark.parametrize("context_length", [9, 10, 17, 18])
def test_guesses_stay_inside_the_context(context_length: int) -> None:
    plain = PairSession(3, context_length, sharpness=9)
    session = SpeculativeSession(PairSession(3, context_length, sharpness=9), 8)
    prompt = [0, 1, 2, 0, 1, 2, 0, 1]
    wanted = run(plain, prompt, Sampling(), 100)
    found = run(session, prompt, Sampling(), 100)
    assert found.stop_reason == wanted.stop_reason == "context"
    assert found.tokens == wanted.tokens


def test_a_session_in_progress_goes_on() -> None:
    plain, inner = PairSession(4), PairSession(4)
    for session in (plain, inner):
        session.prefill([3, 1, 3])
    speculative = SpeculativeSession(inner, 4)
    wanted = complete(plain, [0, 1, 0], Sampler(Sampling()), (), 30)
    assert complete(speculative, [0, 1, 0], Sampler(Sampling()), (), 30).tokens == wanted.tokens
    speculative.truncate(2)
    assert inner.cache == [3, 1]
    assert speculative.position == 2
    np.testing.assert_array_equal(speculative.decode(2), inner.table[1, 2])


@pytest.mark.parametrize("candidates", [-1, 0, MAX_CANDIDATES + 1])
def test_refused(candidates: int) -> None:
    with pytest.raises(UsageError, match=r"outside 1\.\.64"):
        SpeculativeSession(PairSession(3), candidates)


def test_run_takes_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", checkpoint, "-p", "abcabcabc", "--max-tokens", 40, "--json"]
    plain = call_main(monkeypatch, capsys, *arguments).json
    guessed = call_main(monkeypatch, capsys, *arguments, "--speculate", 4).json
    assert guessed["tokens"] == plain["tokens"]
    assert plain["speculation"] is None
    assert 0 <= guessed["speculation"]["accepted"] <= guessed["speculation"]["proposed"]
    refused = call_main(monkeypatch, capsys, *arguments, "--speculate", 65)
    assert refused.code == 2
