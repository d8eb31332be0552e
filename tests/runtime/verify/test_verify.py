"""The verdict: windows, noise floor, thresholds, and models that cannot be compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from places import smollm2_path
from small_models import BOS, VOCABULARY, write_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError, UsageError
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.text.measured_text import open_measured_text
from dsconv.runtime.text.tokenizer import TextTokenizer
from dsconv.runtime.verify.circumstances import circumstances_of
from dsconv.runtime.verify.comparison import Comparison
from dsconv.runtime.verify.judge import failures, judge
from dsconv.runtime.verify.measure import (
    VerifyOptions,
    built_in_text,
    measure,
    plan_windows,
    windows,
)
from dsconv.runtime.verify.reference import Reference, SessionReference, open_reference
from dsconv.runtime.verify.reference_cache import ReferenceCache
from dsconv.runtime.verify.thresholds import from_options
from dsconv.runtime.verify.verdict import Verdict
from dsconv.runtime.verify.verdict_json import to_json

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
        return self.extend(tokens)[-1]

    def decode(self, token: int) -> NDArray[np.float32]:
        return self.prefill([token])

    def truncate(self, length: int) -> None:
        self.position = length

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if self.position == 0:
            self.windows.append([])
        self.windows[-1] += tokens
        self.position += len(tokens)
        return self._table[list(tokens)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("verify") / "m")


@pytest.fixture(scope="module")
def loaded(model: Path) -> Loaded:
    return load(str(model))


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return open_reference(str(model))


@pytest.fixture(scope="module")
def artifact(model: Path) -> Loaded:
    """The same model as int8, on ONNX Runtime."""
    quantized, exported = model.parent / "q", model.parent / "x"
    quantize_checkpoint(open_checkpoint(str(model)), QuantizeOptions(bits=8), quantized)
    export_onnx(open_checkpoint(str(quantized)), ExportOptions(accuracy_level=0), exported)
    return load(str(exported))


def planned(
    artifact: Loaded, reference: Reference, text: str = TEXT, options: VerifyOptions = SHORT
) -> Comparison:
    pieces = plan_windows(artifact, reference, text, options)
    return Comparison("artifact", artifact, reference, pieces, threads=1)


def compared(
    artifact: Loaded, reference: Reference, text: str = TEXT, options: VerifyOptions = SHORT
) -> Verdict:
    """Plan, predict and verify."""
    comparison = planned(artifact, reference, text, options)
    predictions = reference.predict(comparison.windows, lambda done: None)
    return measure(comparison, predictions, circumstances_of(comparison, text, None, FileHashes()))


def table(seed: int = 0) -> NDArray[np.float32]:
    """Logits after every token."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32)


def recorded(like: Loaded, seed: int = 0, context_length: int = 2048) -> tuple[Recorder, Loaded]:
    session = Recorder(table(seed), context_length)
    return session, replace(like, session=session, runtime="recorder")


def recorded_reference(
    like: Loaded, seed: int = 0, context_length: int = 2048
) -> tuple[Recorder, Reference]:
    session, found = recorded(like, seed, context_length)
    return session, SessionReference(found, "recorder")


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


def test_every_window_starts_with_bos_and_both_see_the_same(loaded: Loaded) -> None:
    (mine, left), (theirs, right) = recorded(loaded, 0), recorded_reference(loaded, 1)
    verdict = compared(left, right)
    assert mine.windows == theirs.windows
    assert all(window[0] == BOS for window in mine.windows)
    assert all(len(window) <= 64 for window in mine.windows)
    assert sum(len(window) - 1 for window in mine.windows) == verdict.summary.tokens == 200


def test_windows_fit_the_smaller_context(loaded: Loaded) -> None:
    (mine, left), (_, right) = recorded(loaded, 0, 16), recorded_reference(loaded, 1, 40)
    compared(left, right)
    assert max(len(window) for window in mine.windows) == 16


def test_a_context_of_one_is_refused(loaded: Loaded) -> None:
    left, right = recorded(loaded, 0, 1)[1], recorded_reference(loaded)[1]
    with pytest.raises(InputError, match="context") as refused:
        compared(left, right)
    assert "--context-length" in refused.value.hint  # the reference's context is longer


LONG = VerifyOptions(window=1501, max_tokens=1500)  # one window, BOS included


@pytest.mark.parametrize(("text", "options"), [(TEXT, SHORT), (TEXT * 6, LONG)])
def test_the_figures_are_those_of_the_predicted_positions(
    loaded: Loaded, text: str, options: VerifyOptions
) -> None:
    left, right = recorded(loaded, 3)[1], recorded_reference(loaded, 4)[1]
    summary = compared(left, right, text, options).summary
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (table(4), table(3)))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    inputs: list[int] = []
    losses = []
    for window in plan_windows(left, right, text, options):
        inputs += window[:-1]
        losses += [-log_p[a, b] for a, b in pairwise(window)]
    assert summary.kl_mean == pytest.approx(kl[inputs].mean(), rel=1e-5)
    assert summary.reference_perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_buckets_divide_the_tokens(loaded: Loaded) -> None:
    left, right = recorded(loaded, 3)[1], recorded_reference(loaded, 4)[1]
    verdict = compared(left, right, TEXT * 6, LONG)
    for kind in ("position", "confidence"):
        buckets = [bucket for bucket in verdict.buckets if bucket.of == kind]
        assert sum(bucket.summary.tokens for bucket in buckets) == verdict.summary.tokens
        weighted = sum(b.summary.kl_mean * b.summary.tokens for b in buckets)
        assert weighted / verdict.summary.tokens == pytest.approx(verdict.summary.kl_mean)
    first, second, third = [b for b in verdict.buckets if b.of == "position"]
    assert [first.name, second.name, third.name] == ["0-256", "256-1024", "1024+"]
    assert (first.summary.tokens, second.summary.tokens) == (256, 768)
    assert first.summary.kl_mean == pytest.approx(verdict.scores.kl[:256].mean())
    (unsure,) = [b for b in verdict.buckets if b.name == "0.0-0.5"]
    which = verdict.scores.confidence < 0.5
    assert unsure.summary.kl_mean == pytest.approx(verdict.scores.kl[which].mean())


def test_the_worst_tokens_in_their_context(loaded: Loaded) -> None:
    session, left = recorded(loaded, 4)
    right = recorded_reference(loaded, 4)[1]
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    z, mark = tokenizer.encode("z!")
    session._table[z] = 0
    session._table[z, mark] = 9  # after a z the artifact is sure of an exclamation mark
    worst = compared(left, right).worst_tokens
    assert len(worst) == 10
    assert [token.kl for token in worst] == sorted((t.kl for t in worst), reverse=True)
    first = worst[0]
    assert first.before.endswith("r the laz")
    assert (first.token, first.after[:5]) == ("y", " dog.")
    assert first.artifact_top == "!"
    assert first.artifact_probability == pytest.approx(math.exp(9) / (math.exp(9) + 263), rel=1e-5)
    likeliest = int(table(4)[z].argmax())
    assert first.reference_top == tokenizer.decode([likeliest], skip_special=False)
    pieces = plan_windows(left, right, TEXT, SHORT)
    assert pieces[first.window][first.position - 1] == z


def test_a_model_agrees_with_itself(loaded: Loaded, reference: Reference) -> None:
    verdict = judge(compared(loaded, reference), from_options({"max_kl": 1e-9, "min_top1": 1.0}))
    assert verdict.passed
    assert verdict.summary.artifact_perplexity == pytest.approx(
        verdict.summary.reference_perplexity, rel=1e-6
    )


def test_figures_are_those_of_transformers(model: Path, reference: Reference) -> None:
    """An independent forward of both models on the same tokens, and the textbook formulas."""
    other = write_checkpoint(model.parent / "other", seed=1)
    artifact = load(str(other))
    verdict = compared(artifact, reference, TEXT, SHORT)
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (model, other)
    ]
    kl, agree, losses = [], [], ([], [])
    for window in plan_windows(artifact, reference, TEXT, SHORT):
        with torch.no_grad():
            log_p, log_q = (
                m(torch.tensor([window])).logits[0, :-1].double().log_softmax(-1) for m in models
            )
        kl += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
        agree += (log_p.argmax(-1) == log_q.argmax(-1)).tolist()
        for loss, logs in zip(losses, (log_p, log_q), strict=True):
            loss += (-logs[range(len(window) - 1), window[1:]]).tolist()
    s = verdict.summary
    assert s.kl_mean == pytest.approx(np.mean(kl), rel=1e-4)
    assert s.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert s.top1_agreement == np.mean(agree)
    assert s.reference_perplexity == pytest.approx(math.exp(np.mean(losses[0])), rel=1e-4)
    assert s.artifact_perplexity == pytest.approx(math.exp(np.mean(losses[1])), rel=1e-4)
    shift = np.abs(np.exp(-np.array(losses[0])) - np.exp(-np.array(losses[1]))) > 0.1
    assert s.probability_shift == np.mean(shift)


@pytest.mark.slow
def test_figures_of_a_real_model_are_those_of_transformers(tmp_path: Path) -> None:
    """SmolLM2-135M, rounded to 4 bits, on 4,096 tokens; then the same from the cache."""
    model = open_checkpoint(str(smollm2_path()))
    quantize_checkpoint(
        model, QuantizeOptions(bits=4, group_size=128, method="rtn"), tmp_path / "q"
    )
    reference, artifact = open_reference(str(smollm2_path())), load(str(tmp_path / "q"))
    text, options = built_in_text() * 3, VerifyOptions(512, 4096)
    comparison = planned(artifact, reference, text, options)
    origin = circumstances_of(comparison, text, None, FileHashes())
    live = reference.predict(comparison.windows, lambda done: None)
    s = measure(comparison, live, origin).summary
    independent = [hugging_face(open_checkpoint(str(p))) for p in (smollm2_path(), tmp_path / "q")]
    kl, agree, loss = [], [], []
    for window in comparison.windows:
        with torch.no_grad():
            log_p, log_q = (
                m(torch.tensor([window])).logits[0, :-1].double().log_softmax(-1)
                for m in independent
            )
        kl += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
        agree += (log_p.argmax(-1) == log_q.argmax(-1)).tolist()
        loss += (-log_q[range(len(window) - 1), window[1:]]).tolist()
    assert s.kl_mean == pytest.approx(np.mean(kl), rel=1e-4)
    assert s.top1_agreement == pytest.approx(np.mean(agree), rel=1e-4)
    assert s.artifact_perplexity == pytest.approx(math.exp(np.mean(loss)), rel=1e-4)
    cache = ReferenceCache(tmp_path)
    cache.store("k", live.kept())
    kept = cache.load("k", comparison.windows)
    assert kept is not None
    warm = measure(comparison, kept, origin).summary
    assert warm.kl_mean == pytest.approx(s.kl_mean, rel=2e-3)
    assert warm.top1_agreement == s.top1_agreement


def hugging_face(checkpoint: Checkpoint) -> Any:
    """transformers' model with the weights of a checkpoint that it cannot open itself."""
    config = transformers.LlamaConfig(**checkpoint.config)
    model = transformers.LlamaForCausalLM(config).float().eval()
    weights = {name: torch.from_numpy(checkpoint.rows(name)) for name in checkpoint.parameters}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    if checkpoint.decoder.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def test_the_noise_floor_lies_between_nothing_and_the_quantization(
    loaded: Loaded, reference: Reference, artifact: Loaded
) -> None:
    noise = compared(artifact, reference).noise_floor
    other = compared(recorded(loaded)[1], reference)
    assert noise is not None
    assert noise.what == "bfloat16 against float32"
    assert 0 < noise.summary.kl_mean < other.summary.kl_mean / 10
    assert noise.summary.tokens == 2 * 63


def test_the_noise_floor_is_that_of_two_forwards(model: Path, reference: Reference) -> None:
    narrow = compared(load(str(model), dtype="bfloat16"), reference, TEXT, VerifyOptions(64, 126))
    noise = narrow.noise_floor
    assert noise is not None
    assert noise.summary.tokens == narrow.summary.tokens
    assert noise.summary.kl_mean == pytest.approx(narrow.summary.kl_mean, rel=0.1)


def test_without_the_torch_reference_there_is_no_noise_floor(loaded: Loaded) -> None:
    verdict = compared(recorded(loaded, 0)[1], recorded_reference(loaded, 1)[1])
    assert verdict.noise_floor is None
    assert to_json(verdict)["noise_floor"] == {"kl_mean": None}


def test_a_kept_reference_gives_the_same_verdict(
    tmp_path: Path, reference: Reference, artifact: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of it is read."""
    comparison = planned(artifact, reference)
    origin = circumstances_of(comparison, TEXT, None, FileHashes())
    live = reference.predict(comparison.windows, lambda done: None)
    cold = measure(comparison, live, origin)
    cache = ReferenceCache(tmp_path)
    cache.store("k", live.kept())
    monkeypatch.setattr("dsconv.convert.checkpoint.checkpoint.Checkpoint.rows", None)
    kept = cache.load("k", comparison.windows)
    assert kept is not None
    warm = measure(comparison, kept, origin)
    assert warm.summary.kl_mean == pytest.approx(cold.summary.kl_mean, rel=1e-9)  # kept whole
    assert warm.worst_tokens[0].before == cold.worst_tokens[0].before
    assert warm.noise_floor == cold.noise_floor
    assert [bucket.name for bucket in warm.buckets] == [bucket.name for bucket in cold.buckets]


def test_a_broken_artifact_never_passes(loaded: Loaded, reference: Reference) -> None:
    session, broken = recorded(loaded)
    session._table[:] = np.nan
    verdict = judge(compared(broken, reference), ())
    assert not verdict.passed
    assert failures(verdict) == ["logits: the logits are not finite"]
    json.dumps(to_json(verdict), allow_nan=False)


def test_circumstances(model: Path, reference: Reference, artifact: Loaded) -> None:
    comparison = replace(planned(artifact, reference), path=str(model.parent / "x"), threads=3)
    found = circumstances_of(comparison, TEXT, "t.txt", FileHashes())
    weights = (model.parent / "x" / "model.onnx").read_bytes()
    assert found.artifact_files["model.onnx"] == hashlib.sha256(weights).hexdigest()
    assert {"config.json", "tokenizer.json"} < set(found.artifact_files)
    assert found.text_hash == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (found.text, found.threads, found.runtime) == ("t.txt", 3, "onnxruntime")
    assert {"dsconv", "numpy", "python"} <= set(found.versions)
    assert datetime.fromisoformat(found.date).tzinfo is not None
    shorter = replace(comparison, windows=comparison.windows[:1])
    again = circumstances_of(shorter, TEXT, None, FileHashes())
    assert again.reference_hash == found.reference_hash
    assert again.tokens_hash != found.tokens_hash


@pytest.mark.parametrize("wrong", [{"window": 1}, {"max_tokens": 1}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        VerifyOptions(**wrong)


def test_another_vocabulary_cannot_be_compared(tmp_path: Path, reference: Reference) -> None:
    other = load(str(write_checkpoint(tmp_path / "m", vocab_size=272)))
    with pytest.raises(InputError, match="the artifact has 272 logits per token, the reference"):
        compared(other, reference)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    small = str(write_checkpoint(tmp_path / "m", vocab_size=100))
    with pytest.raises(InputError, match="beyond the embedding, which has 100 rows"):
        compared(load(small), open_reference(small))


def test_a_text_of_nothing_is_refused(loaded: Loaded, reference: Reference) -> None:
    with pytest.raises(InputError, match="0 tokens"):
        compared(loaded, reference, "")


def test_the_built_in_text_is_long_enough_and_in_several_scripts() -> None:
    text = built_in_text()
    assert len(text) > 5_000
    assert any("\u4e00" <= character <= "\u9fff" for character in text)
    assert "def " in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b" \n", "empty"),
        (b"\xff\xfe", "empty"),  # UTF-16 by its mark
        (b"caf\xe9 \n", "not UTF-8"),
        (b"a\0b\0", "zero bytes"),
        (b'{"ids": [1, 2]}\n', "line 1: its keys are 'ids'"),
        (None, "cannot read"),
    ],
)
def test_a_text_file_that_cannot_be_used(
    tmp_path: Path, content: bytes | None, reason: str, loaded: Loaded
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        text_of(path, loaded)


def text_of(path: Path, loaded: Loaded) -> str:
    with open_measured_text(path) as measured:
        assert measured is not None
        return measured.text(
            loaded.side_files, TextTokenizer(loaded.side_files, loaded.config), 100
        )


def test_rows_are_read_as_the_model_would_see_them(tmp_path: Path, loaded: Loaded) -> None:
    path = tmp_path / "rows.JSON"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "there"}]
    path.write_text(json.dumps([{"text": "one"}, {"conversations": turns}]), "utf-8")
    assert text_of(path, loaded) == "one\n<s>user: hi\nassistant: there\nassistant:\n"


def test_of_a_large_text_only_the_beginning_is_read(tmp_path: Path, loaded: Loaded) -> None:
    prose, rows = tmp_path / "prose.txt", tmp_path / "rows.txt"
    prose.write_text("line of prose\n" * 300_000, "utf-8")
    rows.write_text('{"text": "a row"}\n' * 300_000, "utf-8")
    for path, most in ((prose, 2 << 20), (rows, 10_000)):
        text = text_of(path, loaded)
        assert 800 <= len(text) <= most
        assert text.endswith("\n")


def test_progress_adds_up(loaded: Loaded, reference: Reference) -> None:
    comparison = planned(loaded, reference)
    before: list[int] = []
    predictions = reference.predict(comparison.windows, before.append)
    assert sum(before) == reference.work(comparison.windows) > 0
    done: list[int] = []
    origin = circumstances_of(comparison, TEXT, None, FileHashes())
    measure(comparison, predictions, origin, done.append)
    assert done == [len(window) for window in comparison.windows]
