"""A smaller model guesses for many texts: the same tokens, fewer passes, nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_batch import VOCABULARY, FakeBatch, logits_after
from native_models import exported, native_checkpoint
from numpy.typing import NDArray
from outputs import quantized
from small_models import LLAMA

from dsconv.runtime.batches.batch import Piece, Want
from dsconv.runtime.batches.native import NativeBatch
from dsconv.runtime.batches.one_by_one import OneByOne
from dsconv.runtime.generate.drafted_batch import MOST_TOGETHER, DraftedBatch
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.scheduling.request import Request
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.scheduling.scheduler import Scheduler
from dsconv.runtime.sessions.native import NativeOptions, NativeSession

SHORT = 3  # tokens on which logits depend, so that a draft that reads the end of a text knows all


class ShortMemory(FakeBatch):
    """What it gives does not outlast the next pass."""

    noise = 0.0
    given: Sequence[NDArray[np.float32] | None] = ()

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        for rows in self.given:
            if rows is not None:
                rows.fill(np.nan)
        found = super().step(pieces)
        self.given = found
        return found

    def logits(self, text: Sequence[int]) -> NDArray[np.float32]:
        wrong = np.random.default_rng(sum(text[-2:])).standard_normal(VOCABULARY)
        return logits_after(text[-SHORT:]) + np.float32(self.noise) * wrong.astype(np.float32)


class Clock:
    """A pass of the model takes a second and 0.05 for every token; one of the draft a tenth."""

    def __init__(self, model: FakeBatch, draft: FakeBatch) -> None:
        self._model, self._draft = model, draft

    def __call__(self) -> float:
        model = self._model.passes + 0.05 * self._model.computed
        return model + 0.1 * self._draft.passes + 0.005 * self._draft.computed


def pair(
    noise: float, sequences: int = 6, blocks: int = 400, draft_blocks: int = 400
) -> tuple[FakeBatch, FakeBatch, DraftedBatch]:
    model = ShortMemory(blocks, sequences, 64)
    draft = ShortMemory(draft_blocks, min(sequences, MOST_TOGETHER), 64)
    draft.noise = noise
    return model, draft, DraftedBatch(model, draft, VOCABULARY, Clock(model, draft))


def requests(count: int, tokens: int, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prompt = rng.integers(0, VOCABULARY, int(rng.integers(1, 60))).tolist()
        chosen = Sampling(0.6, seed=number) if number % 3 == 2 else Sampling()
        stop = {int(rng.integers(VOCABULARY))} if number % 4 == 3 else set()
        found.append(Request(prompt, int(rng.integers(1, tokens)), chosen, stop))
    return found


def alone(request: Request) -> tuple[int, ...]:
    sampler, text = Sampler(request.sampling), list(request.tokens)
    sampler.begin(request.tokens, request.stop_ids)
    written: list[int] = []
    while len(written) < request.max_tokens:
        token = sampler.choose(logits_after(text[-SHORT:]))
        if token in request.stop_ids:
            break
        written.append(token)
        text.append(token)
    return tuple(written)


@pytest.mark.parametrize("noise", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("sequences", [1, 2, 6, 12])
def test_the_tokens_are_those_without_a_draft(noise: float, sequences: int) -> None:
    for seed in range(6):
        asked = requests(14, 90, seed)
        model, draft, drafted = pair(noise, sequences, blocks=40 + 20 * seed, draft_blocks=30)
        written = run_all(drafted, asked)
        assert [found.tokens for found in written] == [alone(request) for request in asked]
        assert not model.there
        assert not draft.there
        assert drafted.accepted <= drafted.proposed


def test_a_good_draft_saves_passes_and_a_bad_one_costs_few() -> None:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, VOCABULARY, 5).tolist() for _ in range(2)]
    asked = [Request(prompt, 150, Sampling(1.0, seed=1)) for prompt in prompts]
    took = {}
    for noise in (0.0, 50.0):
        model, draft, drafted = pair(noise)
        run_all(drafted, asked)
        took[noise] = Clock(model, draft)()
    plain = ShortMemory(400, 6, 64)
    run_all(plain, asked)
    without = Clock(plain, FakeBatch(1, 1))()
    assert took[0.0] < 0.75 * without
    assert took[50.0] < 1.06 * without


def test_many_texts_and_prompts_get_no_guesses() -> None:
    _, draft, drafted = pair(0.0, sequences=12)
    run_all(drafted, [Request([1, 2, 3 + i], 20) for i in range(12)])
    assert draft.passes == 0
    assert drafted.proposed == 0


def test_a_pass_for_some_while_others_have_their_logits() -> None:
    _, _, drafted = pair(1.0)
    sequences = [drafted.add() for _ in range(3)]
    texts = [[1 + i] for i in range(3)]
    mixed = 0
    for _ in range(150):
        pieces = [Piece(s, [text[-1]]) for s, text in zip(sequences, texts, strict=True)]
        mixed += len({drafted.known(piece) for piece in pieces}) == 2
        rows = drafted.step(pieces)
        for text, row in zip(texts, rows, strict=True):
            assert np.array_equal(row, logits_after(text[-SHORT:]))
            text.append(int(np.argmax(row)))
    assert mixed > 10


def test_the_draft_forgets_texts_that_wait() -> None:
    """Its cache holds one of the two: who is guessed for now gets it."""
    _, draft, drafted = pair(0.0, draft_blocks=9)
    proposed = []
    for _ in range(2):
        before, sequence, token = drafted.proposed, drafted.add(), 1
        for _ in range(60):
            logits = drafted.step([Piece(sequence, [token])])[0]
            assert logits is not None
            token = int(np.argmax(logits))
        proposed.append(drafted.proposed - before)
    assert min(proposed) > 20
    assert len(draft.there) == 1


def test_texts_that_nobody_goes_on_with_take_no_memory_for_copies() -> None:
    _, _, drafted = pair(0.0)
    first, second = drafted.add(), drafted.add()
    for sequence in (first, second):
        drafted.step([Piece(sequence, [1, 2, 3] * 8)])
        drafted.step([Piece(sequence, [1])])
    lookups = [drafted._sequences[sequence].text.lookup for sequence in (first, second)]
    assert [bool(lookup._ends) for lookup in lookups] == [False, True]


def test_what_was_guessed_gives_way_where_memory_is_needed() -> None:
    model, _, drafted = pair(0.0, blocks=4)
    sequence = drafted.add()
    token, seen = 1, [1]
    while not model.length(sequence) > drafted.length(sequence) + 2:
        logits = drafted.step([Piece(sequence, [token])])[0]
        assert logits is not None
        token = int(np.argmax(logits))
        seen.append(token)
    free = (model.capacity - drafted.length(sequence)) // 8 * 8
    other = drafted.add()
    piece = Piece(other, [1] * free, Want.LAST)
    assert drafted.fits([piece])
    assert model.length(sequence) == drafted.length(sequence)
    drafted.step([piece])
    drafted.drop(other)
    row = drafted.step([Piece(sequence, [token])])[0]
    assert np.array_equal(row, logits_after(seen[-SHORT:]))


def test_a_pass_that_fails_leaves_everything_as_it_was() -> None:
    model, _, drafted = pair(0.0)
    sequence = drafted.add()
    drafted.step([Piece(sequence, [1, 2, 3])])
    whole = model.step
    model.step = lambda pieces: (_ for _ in ()).throw(MemoryError())  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        drafted.step([Piece(sequence, [4])])
    assert drafted.length(sequence) == 3
    model.step = whole  # type: ignore[method-assign]
    row = drafted.step([Piece(sequence, [4])])[0]
    assert np.array_equal(row, logits_after([2, 3, 4]))


def test_cancelled_amid_a_guess() -> None:
    model, draft, drafted = pair(0.0, sequences=3)
    scheduler = Scheduler(drafted)
    done = {}
    asked = requests(9, 80, 5)
    jobs = [
        scheduler.submit(request, lambda found, i=i: done.__setitem__(i, found))  # type: ignore[misc]
        for i, request in enumerate(asked)
    ]
    for number in range(400):
        scheduler.step()
        if number % 9 == 8 and number // 9 in (1, 4, 6):
            scheduler.cancel(jobs[number // 9])
    scheduler.run()
    for index, found in done.items():
        assert found.generation is not None
        assert found.generation.tokens == alone(asked[index])
    scheduler.close()
    assert not model.there
    assert not draft.there


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("drafted")
    model = native_checkpoint(folder / "m", **LLAMA)
    small = exported(quantized(model, folder / "q", bits=4), folder / "q.dsq")
    return exported(model, folder / "m.dsq"), small


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("together", [False, True])
def test_the_native_engine_writes_the_same(
    at_once: int, together: bool, files: tuple[Path, Path]
) -> None:
    target, small = (NativeSession(file, NativeOptions(threads=1)) for file in files)
    rng = np.random.default_rng(3)
    asked = [
        Request(rng.integers(0, 264, 20).tolist(), 40, Sampling(0.7 * (i % 2), seed=i))
        for i in range(6)
    ]
    plain = NativeBatch(target, "own", 1 << 24, at_once)
    written = [found.tokens for found in run_all(plain, asked)]
    draft = NativeBatch(small, "own", 1 << 24, at_once) if together else OneByOne(small)
    drafted = DraftedBatch(NativeBatch(target, "own", 1 << 24, at_once), draft, 264)
    assert [found.tokens for found in run_all(drafted, asked)] == written
    if together or at_once == 1:
        assert drafted.proposed > 0
