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
    assert drafted.accepted == drafted.proposed - len(drafted._text.ahead)
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


def test_a_draft_with_a_short_context_begins_again() -> None:
    model, draft = pair(0.0, vocabulary=60)
    draft.context_length = 40
    drafted = DraftedSession(model, draft, 60, Clock(model, draft))
    alone = write(model, Sampling(0.4, seed=2), 120)
    model.reset()
    assert write(drafted, Sampling(0.4, seed=2), 120).tokens == alone.tokens
    assert drafted.position > 80
    assert drafted.accepted > 30


def test_turns_and_cuts_between_them() -> None:
    """A chat: prompts follow answers that ended amid a guess, and some are taken back."""
    model, draft = pair(0.4)
    drafted = DraftedSession(model, draft, 12, Clock(model, draft))
    alone, _ = pair(0.4)
    rng = np.random.default_rng(2)
    for turn in range(40):
        prompt = rng.integers(0, 12, int(rng.integers(1, 9))).tolist()
        if turn % 4 == 3:
            length = int(rng.integers(0, alone.position))
            drafted.truncate(length)
            alone.truncate(length)
        if turn % 9 == 8:
            drafted.reset()
            alone.reset()
        found = []
        for session in (drafted, alone):
            logits = session.prefill(prompt)
            tokens = []
            for _ in range(int(3 + turn % 7)):
                tokens.append(int(np.argmax(logits)))
                logits = session.decode(tokens[-1])
            found.append((tokens, session.position))
        assert found[0] == found[1]
        drafted.truncate(drafted.position)
        assert model.cache == alone.cache


def told(length: DraftLength, guesses: int, right: int, confidence: float = 0.8) -> None:
    """A round: a step of the draft takes a tenth of a pass, a wider pass 0.05 per token."""
    length.begin(1, 100)
    length.drafted(guesses, 1, 0.1 * guesses)
    length.checked(guesses, 1 + 0.05 * guesses)
    known = guesses if right == guesses else right + 1
    length.shares.note_guesses([confidence] * known, right)
    length.end_round(right + 1, drafted=True)


def ready() -> DraftLength:
    length = DraftLength()
    for _ in range(3):
        length.plain(1.0)
    return length


def test_guessing_stops_where_it_does_not_pay_and_is_tried_again() -> None:
    length = ready()
    assert length.begin(1, 100)
    assert not length.begin(1, 0)
    tried = 0
    for _ in range(30):
        tried += length.begin(1, 100)
        if length.begin(1, 100):
            told(length, 3, 0)
    assert tried < 20
    assert length.gain < 1
    assert not length.begin(1, 100)
    tokens = 0
    while not length.begin(1, 100):
        length.plain(1.0)
        tokens += 1
    assert 5 < tokens < 200  # a share of the time is for finding out
    for _ in range(10):
        told(length, 4, 4)
    assert length.gain > 1


def test_unlikely_guesses_end_a_round() -> None:
    length = ready()
    for _ in range(40):
        told(length, 4, 4, 0.95)
        told(length, 1, 0, 0.1)
    assert length.chance(0.95) > 0.95
    assert length.chance(0.1) < 0.1
    assert length.goes_on(1, 100, 1.0)
    assert not length.goes_on(1, 100, length.chance(0.1))
    assert not length.goes_on(draft_length.MOST, 100, 1.0)
    assert not length.goes_on(3, 3, 1.0)
    assert not length.is_worth_checking(0.02)


def test_what_stood_before_is_copied_while_it_is_right() -> None:
    length = ready()
    assert length.copied(4, 100) > 0
    assert length.copied(4, 1) == 1
    for _ in range(20):
        length.checked(8, 1.4)
        length.shares.note_copies(4, 8, wrong=False)
        length.end_round(9, drafted=False)
    assert length.copied(4, 100) == draft_length.MOST_COPIED
    for _ in range(200):
        length.checked(4, 1.2)
        length.shares.note_copies(4, 0, wrong=True)
        length.end_round(1, drafted=False)
    assert length.copied(4, 100) == 0


def test_more_of_the_text_is_read_when_that_is_earned() -> None:
    length = ready()
    begins = length.reads_again(4000, 0, 4000)
    assert 16 <= begins < 400
    assert length.reads_again(4000, begins, 1) == 0
    for _ in range(100):
        told(length, 6, 6)
    assert length.reads_again(4000, begins, 1) > 4 * begins
    assert length.reads_again(200, 100, 1) == 200
    assert length.reads_again(200, 199, 1) == 0


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


def test_answers_of_a_task_with_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "m")
    exported(model, tmp_path / "m.dsq")
    exported(quantized(model, tmp_path / "q", bits=4), tmp_path / "q.dsq")
    file = tmp_path / "t.jsonl"
    file.write_text('{"question": "How many?", "answer": "#### 2"}\n')
    asked: list[object] = ["verify", tmp_path / "m.dsq", "--reference", model, "--json"]
    draft = ["--draft", tmp_path / "q.dsq"]
    assert_refused(call_main(monkeypatch, capsys, *asked, *draft), 2, "--task")
    task = ["--task", file, "--task-tokens", 30, "--task-seeds", 2]
    alone = call_main(monkeypatch, capsys, *asked, *task)
    drafted = call_main(monkeypatch, capsys, *asked, *task, *draft)
    assert drafted.code == alone.code, drafted.err
    assert drafted.json["tasks"] == alone.json["tasks"]
    wrong = ["--draft", tmp_path / "none.dsq"]
    assert_refused(call_main(monkeypatch, capsys, *asked, *task, *wrong), 3, "none.dsq")
