"""The verdict: windows, noise floor, thresholds, and models that cannot be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import BOS, VOCABULARY, write_checkpoint

from dsconv.convert.checkpoint import open_checkpoint
from dsconv.convert.onnx.export import ExportOptions, export_onnx
from dsconv.convert.quantization_plan import QuantizeOptions
from dsconv.convert.quantized import quantize_checkpoint
from dsconv.errors import InputError, UsageError
from dsconv.runtime.load import Loaded, load
from dsconv.runtime.verify import (
    VerifyOptions,
    plan_windows,
    read_text,
    verify,
    windows,
)

TEXT = "The quick brown fox jumps over the lazy dog. 12345 + 67890 = 80235\n" * 4
SHORT = VerifyOptions(window=64, max_tokens=200)


class Recorder:
    """A session that notes what it is asked, and answers from a table of logits."""

    def __init__(self, table: NDArray[np.float32], context_length: int = 2048) -> None:
        self._table = table
        self.context_length = context_length
        self.vocabulary = table.shape[1]
        self.position = 0
        self.windows: list[list[int]] = []

    def reset(self) -> None:
        self.position = 0

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self.score(tokens)[-1]

    def decode(self, token: int) -> NDArray[np.float32]:
        return self.prefill([token])

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.windows.append(list(tokens))
        return self._table[list(tokens)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("verify") / "m")


@pytest.fixture(scope="module")
def reference(model: Path) -> Loaded:
    return load(str(model))


@pytest.fixture(scope="module")
def artifact(model: Path) -> Loaded:
    """The same model as int8, on ONNX Runtime."""
    quantized, exported = model.parent / "q", model.parent / "x"
    quantize_checkpoint(open_checkpoint(str(model)), QuantizeOptions(bits=8), quantized)
    export_onnx(open_checkpoint(str(quantized)), ExportOptions(accuracy_level=0), exported)
    return load(str(exported))


def table(seed: int = 0) -> NDArray[np.float32]:
    """Logits after every token."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32)


def recorded(like: Loaded, seed: int = 0, context_length: int = 2048) -> tuple[Recorder, Loaded]:
    session = Recorder(table(seed), context_length)
    return session, replace(like, session=session, runtime="recorder")


@pytest.mark.parametrize(
    ("count", "bos", "size", "lengths"),
    [
        (10, [], 4, [4, 4, 2]),
        (10, [9], 4, [4, 4, 4, 2]),
        (9, [], 4, [4, 4]),  # a single token predicts nothing
        (9, [9], 4, [4, 4, 4]),
        (1, [9], 4, [2]),
        (1, [], 4, []),
        (0, [9], 4, []),
        (8, [], 100, [8]),
        (4, [9], 2, [2, 2, 2, 2]),
    ],
)
def test_windows(count: int, bos: list[int], size: int, lengths: list[int]) -> None:
    found = list(windows(range(100, 100 + count), bos, size))
    assert [len(window) for window in found] == lengths
    assert all(window[: len(bos)] == bos for window in found)
    seen = [token for window in found for token in window[len(bos) :]]
    assert seen == list(range(100, 100 + len(seen)))


def test_every_window_starts_with_bos_and_both_see_the_same(reference: Loaded) -> None:
    (mine, left), (theirs, right) = recorded(reference, 0), recorded(reference, 1)
    verdict = verify(left, right, TEXT, SHORT)
    assert mine.windows == theirs.windows
    assert all(window[0] == BOS for window in mine.windows)
    assert all(len(window) <= 64 for window in mine.windows)
    assert sum(len(window) - 1 for window in mine.windows) == verdict.summary.tokens == 200


def test_windows_fit_the_smaller_context(reference: Loaded) -> None:
    (mine, left), (_, right) = recorded(reference, 0, 16), recorded(reference, 1, 40)
    verify(left, right, TEXT, SHORT)
    assert max(len(window) for window in mine.windows) == 16


def test_a_context_of_one_is_refused(reference: Loaded) -> None:
    left, right = recorded(reference, 0, 1)[1], recorded(reference)[1]
    with pytest.raises(InputError, match="context"):
        verify(left, right, TEXT, SHORT)


def test_the_figures_are_those_of_the_predicted_positions(reference: Loaded) -> None:
    left, right = recorded(reference, 3)[1], recorded(reference, 4)[1]
    summary = verify(left, right, TEXT, SHORT).summary
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (table(4), table(3)))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    inputs: list[int] = []
    losses = []
    for window in plan_windows(left, right, TEXT, SHORT):
        inputs += window[:-1]
        losses += [-log_p[a, b] for a, b in pairwise(window)]
    assert summary.kl_mean == pytest.approx(kl[inputs].mean(), rel=1e-5)
    assert summary.reference_perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_a_model_agrees_with_itself(reference: Loaded) -> None:
    verdict = verify(reference, reference, TEXT, replace(SHORT, max_kl=0.0, min_top1=1.0))
    assert verdict.passed
    assert verdict.summary.kl_max == 0
    assert verdict.summary.top1_agreement == 1
    assert verdict.summary.artifact_perplexity == verdict.summary.reference_perplexity


def test_the_noise_floor_lies_between_nothing_and_the_quantization(
    reference: Loaded, artifact: Loaded
) -> None:
    noise = verify(artifact, reference, TEXT, SHORT).noise_kl
    other = verify(recorded(reference)[1], reference, TEXT, SHORT)
    assert noise is not None
    assert 0 < noise < other.summary.kl_mean / 10


def test_without_the_torch_reference_there_is_no_noise_floor(reference: Loaded) -> None:
    verdict = verify(recorded(reference, 0)[1], recorded(reference, 1)[1], TEXT, SHORT)
    assert verdict.noise_kl is None
    assert verdict.to_json()["noise_floor"] == {"kl_mean": None}


@pytest.mark.parametrize(
    ("factors", "failures"),
    [
        ((1.01, 0.99), []),
        ((0.99, 0.99), ["mean KL"]),
        ((1.01, 1.01), ["top-1 agreement"]),
        ((0.99, 1.01), ["mean KL", "top-1 agreement"]),
        ((None, None), []),
    ],
)
def test_thresholds_both_ways(
    reference: Loaded,
    artifact: Loaded,
    factors: tuple[float | None, float | None],
    failures: list[str],
) -> None:
    measured = verify(artifact, reference, TEXT, SHORT).summary
    assert 0.5 < measured.top1_agreement < 0.99
    kl_factor, top1_factor = factors
    options = replace(
        SHORT,
        max_kl=None if kl_factor is None else kl_factor * measured.kl_mean,
        min_top1=None if top1_factor is None else top1_factor * measured.top1_agreement,
    )
    verdict = verify(artifact, reference, TEXT, options)
    assert verdict.passed is (not failures)
    assert [text.split(" 0.")[0] for text in verdict.failures] == failures
    assert verdict.to_json()["passed"] is verdict.passed


def test_a_threshold_that_is_met_exactly_is_met(reference: Loaded, artifact: Loaded) -> None:
    measured = verify(artifact, reference, TEXT, SHORT).summary
    options = replace(SHORT, max_kl=measured.kl_mean, min_top1=measured.top1_agreement)
    assert verify(artifact, reference, TEXT, options).passed


def test_a_broken_artifact_never_passes(reference: Loaded) -> None:
    session, broken = recorded(reference)
    session._table[:] = np.nan
    verdict = verify(broken, reference, TEXT, SHORT)
    assert not verdict.passed
    assert verdict.failures == ["the logits are not finite"]
    json.dumps(verdict.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 1},
        {"max_tokens": 1},
        {"max_kl": -0.1},
        {"max_kl": math.nan},
        {"min_top1": 1.5},
        {"min_top1": -0.1},
        {"min_top1": math.nan},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        VerifyOptions(**wrong)


def test_another_vocabulary_cannot_be_compared(tmp_path: Path, reference: Loaded) -> None:
    other = load(str(write_checkpoint(tmp_path / "m", vocab_size=272)))
    with pytest.raises(InputError, match="the artifact has 272 logits per token, the reference"):
        verify(other, reference, TEXT, SHORT)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    small = load(str(write_checkpoint(tmp_path / "m", vocab_size=100)))
    with pytest.raises(InputError, match="the model has 100"):
        verify(small, small, TEXT, SHORT)


def test_a_text_of_nothing_is_refused(reference: Loaded) -> None:
    with pytest.raises(InputError, match="0 tokens"):
        verify(reference, reference, "", SHORT)


def test_the_built_in_text_is_long_enough_and_in_several_scripts() -> None:
    text = read_text(None)
    assert len(text) > 5_000
    assert any("\u4e00" <= character <= "\u9fff" for character in text)
    assert "def " in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b" \n", "empty"), (b"\xff\xfe", "not UTF-8"), (None, "cannot read")],
)
def test_a_text_file_that_cannot_be_used(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_text(path)


def test_progress_adds_up(reference: Loaded) -> None:
    done: list[int] = []
    planned = plan_windows(reference, reference, TEXT, SHORT)
    verify(reference, reference, TEXT, SHORT, done.append)
    assert done == [len(window) for window in planned]
