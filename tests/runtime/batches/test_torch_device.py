"""Many sequences in torch: each gets what it would get alone, but for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from batch_schedules import Schedule, texts
from native_models import some_tokens
from outputs import quantized
from small_models import LLAMA, LLAMA3, QWEN3, write_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.batches.batch import Piece, Want
from dsconv.runtime.batches.one_by_one import OneByOne
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.batches.torch_device import TorchBatch
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.scheduling.request import Request
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.sessions.torch_device_session import AcceleratorSession
from dsconv.runtime.sessions.torch_reference import TorchSession

LENGTH = 560  # beyond the first size of the rows
ROOM = 1 << 26
MODELS = {
    "qwen2, int4": ({}, {"bits": 4}),
    "qwen3, tied, int8 activations": (
        {**QWEN3, "tie_word_embeddings": True},
        {"bits": 8, "activations": "int8"},
    ),
    "llama, scaled rope": ({**LLAMA, "rope_scaling": LLAMA3}, None),
}


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    changes, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp("torch")
    model = write_checkpoint(folder / "m", **changes)
    return quantized(model, folder / "q", **options) if options else open_checkpoint(str(model))


def both(checkpoint: Checkpoint) -> list[AcceleratorSession | TorchSession]:
    return [
        AcceleratorSession(checkpoint, "cpu", threads=1),
        TorchSession(checkpoint, threads=1),
        AcceleratorSession(checkpoint, "cpu", threads=1, dtype=torch.float64),
    ]


@pytest.mark.parametrize(("which", "tolerance"), [(0, 1e-4), (1, 1e-4), (2, 1e-6)])
def test_random_schedules(checkpoint: Checkpoint, which: int, tolerance: float) -> None:
    session = both(checkpoint)[which]
    written = texts(4, LENGTH, session.vocabulary)
    alone = [session.score(text) for text in written]
    batch = TorchBatch(session, ROOM, 7)
    assert not batch.independent
    if checkpoint.rounds_inputs("model.layers.0.mlp.down_proj.weight") and which < 2:
        tolerance = 0.05  # of an int8 activation that lay between two codes
    schedule = Schedule(batch, written, alone, which, tolerance)
    schedule.run(60)
    assert schedule.compared > 60
    assert schedule.wrong == []
    assert batch.free_positions == batch.capacity


def test_requests_get_what_they_would_get_alone(checkpoint: Checkpoint) -> None:
    for session in both(checkpoint)[:2]:
        start = some_tokens(40)
        requests = [Request([*start, i + 3], 12, Sampling(0.0)) for i in range(6)]
        together = run_all(TorchBatch(session, ROOM, 4), requests)
        alone = run_all(OneByOne(session), requests)
        assert [g.tokens for g in together] == [g.tokens for g in alone]


@pytest.mark.parametrize("provider", ["cpu", "torch:cpu"])
def test_loaded_checkpoints_have_a_batch(provider: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", max_position_embeddings=300)
    loaded: Loaded = load(str(model), provider, threads=1)
    batch = open_batch(loaded, BatchOptions(sequences=3))
    assert isinstance(batch, TorchBatch)
    assert (batch.max_sequences, batch.capacity, batch.room_for(300)) == (3, 300, 3)
    assert batch.room_for(301) == 0


def test_what_is_wrong_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path / "m", max_position_embeddings=300)))
    session = AcceleratorSession(checkpoint, "cpu", threads=1)
    batch = TorchBatch(session, ROOM, 2)
    first = batch.add()
    tokens = some_tokens(256)
    kept = batch.step([Piece(first, tokens[:9])])[0]
    with pytest.raises(InputError, match="token 264 "):
        batch.step([Piece(first, [264])])
    with pytest.raises(ValueError, match="no sequence 7"):
        batch.step([Piece(7, [1])])
    with pytest.raises(ValueError, match="two pieces"):
        batch.step([Piece(first, [1]), Piece(first, [2])])
    for count in (0, 257):
        with pytest.raises(ValueError, match="1 to 256"):
            batch.step([Piece(first, [1] * count)])
    batch.fork(first, 0)
    with pytest.raises(ValueError, match="2 sequences already"):
        batch.add()
    batch.step([Piece(first, tokens, Want.NONE)])
    with pytest.raises(InputError, match="beyond the context of 300"):
        batch.step([Piece(first, tokens)])
    batch.truncate(first, 8)
    again = batch.step([Piece(first, tokens[8:9])])[0]
    np.testing.assert_allclose(again, kept, rtol=0, atol=1e-4)
    small = TorchBatch(session, 1, 3)
    assert small.max_sequences == 1
    number = small.add()
    with pytest.raises(MemoryError):
        small.step([Piece(number, tokens)])
    assert small.length(number) == 0
    small.drop(number)
    with pytest.raises(ValueError, match="no sequence 0"):
        small.length(number)
