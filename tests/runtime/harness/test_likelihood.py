"""Log-likelihoods of many continuations, against transformers on one text at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from native_models import exported
from numpy.typing import NDArray
from small_models import LLAMA, VOCABULARY, write_checkpoint
from transformers import AutoModelForCausalLM

from dsconv.errors import InputError
from dsconv.runtime.batches.batch import Batch, Piece, Want
from dsconv.runtime.batches.native import NativeBatch
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.harness.likelihood import Continuation, Score, score
from dsconv.runtime.sessions.load import load

CONTEXT = 96
TOLERANCE = 3e-3  # per token: the engine keeps keys and values in half precision


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "checkpoint"
    write_checkpoint(folder, torch_dtype="float16", max_position_embeddings=CONTEXT, **LLAMA)
    exported(folder, folder.parent / "m.dsq")
    return folder


@pytest.fixture(scope="module", params=["m.dsq", "checkpoint"])
def batch(request: pytest.FixtureRequest, checkpoint: Path) -> Batch:
    return open_batch(load(str(checkpoint.parent / request.param)))


def asked() -> list[Continuation]:
    """Contexts that begin alike, choices of one token and of several, the same one twice, one that
    is the longest that fits, and one that does not."""
    draw = random.Random(0)

    def some(count: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(count)]

    shots = some(40)
    found = [Continuation([1], some(3)), Continuation(some(1), some(1))]
    for _ in range(3):
        context = shots + some(draw.randrange(1, 20))
        found += [Continuation(context, some(1)) for _ in range(4)]
        found += [Continuation(context, some(draw.randrange(2, 9))) for _ in range(4)]
    found += [found[5], Continuation(some(1), some(CONTEXT)), Continuation(some(90), some(20))]
    # The same text read, of which other parts are asked for.
    return [*found, Continuation(found[9].context[:-2], [*found[9].context[-2:], 7])]


def expected(folder: Path, asked: list[Continuation]) -> list[Score]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for item in asked:
        text = torch.tensor([*item.context, *item.tokens])[-(CONTEXT + 1) :]
        with torch.no_grad():
            logits = model(text[None, :-1]).logits[0].double().log_softmax(-1)
        logits, tokens = logits[-len(item.tokens) :], text[-len(item.tokens) :]
        total = logits.gather(1, tokens[:, None]).sum()
        found.append((float(total), bool((logits.argmax(-1) == tokens).all())))
    return found


def test_sums_are_those_of_transformers(batch: Batch, checkpoint: Path) -> None:
    items = asked()
    told: dict[int, Score] = {}
    found = score(batch, items, CONTEXT, told.__setitem__)
    right = expected(checkpoint, items)
    for item, (total, greedy), (wanted, is_greedy) in zip(items, found, right, strict=True):
        assert abs(total - wanted) <= TOLERANCE * len(item.tokens)
        assert greedy == is_greedy
    assert [told[index] for index in range(len(items))] == found


def test_what_the_model_would_write_is_greedy(batch: Batch, checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    text = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=9, do_sample=False)[0].tolist()
    items = [Continuation(text[:cut], text[cut:]) for cut in range(3, len(text))]
    assert all(greedy for _, greedy in score(batch, items, CONTEXT))


def test_company_changes_nothing(batch: Batch) -> None:
    items = asked()
    alone = [score(batch, [item], CONTEXT)[0] for item in items]
    found = score(batch, items, CONTEXT)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]
    sums = np.array([[total for total, _ in some] for some in (found, alone)])
    if batch.independent:
        assert (sums[0] == sums[1]).all()
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)


def test_no_continuation_is_cut(batch: Batch) -> None:
    with pytest.raises(InputError, match="97 tokens, the context has 96"):
        score(batch, [Continuation([1], [2] * 97)], CONTEXT)


def test_contexts_are_read_once(checkpoint: Path) -> None:
    """However many came before: what is kept of them makes room."""
    loaded = load(str(checkpoint.parent / "m.dsq"))
    batch = _Counting(open_batch(loaded, BatchOptions(sequences=4)))
    draw = random.Random(1)
    items = []
    for _ in range(6):
        context = [draw.randrange(VOCABULARY) for _ in range(40)]
        items += [Continuation(context, [choice, 7, 8]) for choice in range(4)]
    score(batch, items, CONTEXT)
    # 40 tokens of a context, of which the last gives the logits of what comes first.
    assert batch.tokens == 6 * (39 + 4 * 3)
    assert batch.rows == 6 * 4 * 3


class _Counting(NativeBatch):
    """Counts tokens computed, and logits."""

    def __init__(self, batch: Batch) -> None:
        vars(self).update(vars(batch))
        self.tokens = self.rows = 0

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        self.tokens += sum(len(piece.tokens) for piece in pieces)
        self.rows += sum(len(piece.tokens) for piece in pieces if piece.want is Want.EVERY)
        return super().step(pieces)
