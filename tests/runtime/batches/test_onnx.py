"""Many sequences on one ONNX graph: each gets what it would get alone, but for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batch_schedules import Schedule, texts
from native_models import some_tokens
from outputs import quantized
from small_models import write_checkpoint

from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.runtime.batches.batch import Piece, Want
from dsconv.runtime.batches.one_by_one import OneByOne
from dsconv.runtime.batches.onnx import OnnxBatch
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.scheduling.request import Request
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.sessions.load import Loaded, load

TOLERANCE = 1e-4  # of the largest logit, or whole
LENGTH = 600  # beyond the first size of the buffers


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("onnx")
    made = quantized(write_checkpoint(folder / "m"), folder / "q", bits=4)
    export_onnx(made, ExportOptions(accuracy_level=0), folder / "onnx")
    return load(str(folder / "onnx"), threads=1)


def test_random_schedules(loaded: Loaded) -> None:
    rng = np.random.default_rng(0)
    texts = [some_tokens(LENGTH, seed) for seed in range(3)]
    alone = [loaded.session.score(text) for text in texts]
    batch = open_batch(loaded, BatchOptions(sequences=5))
    assert isinstance(batch, OnnxBatch)
    assert not batch.independent
    there: dict[int, list[int]] = {}  # sequence -> [text, length]
    compared = 0
    for _ in range(120):
        if len(there) < batch.max_sequences and rng.random() < 0.4:
            if there and rng.random() < 0.4:
                source = int(rng.choice(list(there)))
                text, length = there[source]
                kept = int(rng.integers(0, length + 1))
                there[batch.fork(source, kept)] = [text, kept]
            else:
                there[batch.add()] = [int(rng.integers(len(texts))), 0]
        elif there and rng.random() < 0.1:
            gone = int(rng.choice(list(there)))
            batch.drop(gone)
            del there[gone]
        pieces = []
        for sequence, (text, length) in there.items():
            count = 1 if rng.random() < 0.7 else int(rng.integers(1, 90))
            tokens = texts[text][length : length + count]
            if tokens and rng.random() < 0.9:
                pieces.append(Piece(sequence, tokens, list(Want)[int(rng.integers(1, 3))]))
        if not pieces:
            continue
        for piece, rows in zip(pieces, batch.step(pieces), strict=True):
            assert rows is not None
            text, length = there[piece.sequence]
            end = there[piece.sequence][1] = length + len(piece.tokens)
            wanted = alone[text][length:end]
            got = rows if piece.want is Want.EVERY else rows[None]
            np.testing.assert_allclose(got, wanted[-len(got) :], rtol=0, atol=TOLERANCE)
            compared += 1
    assert compared > 100


def test_requests_get_what_they_would_get_alone(loaded: Loaded) -> None:
    start = some_tokens(40)
    requests = [Request([*start, i + 3], 12, Sampling(0.8, seed=i)) for i in range(6)]
    together = run_all(open_batch(loaded, BatchOptions(sequences=4)), requests)
    loaded.session.reset()
    alone = run_all(OneByOne(loaded.session), requests)
    assert [g.tokens for g in together] == [g.tokens for g in alone]


@pytest.mark.parametrize("dialect", ["std24", "std21", "std17", "std17-nbits"])
def test_standard_graphs(dialect: str, tmp_path: Path) -> None:
    made = quantized(write_checkpoint(tmp_path / "m"), tmp_path / "q", bits=4)
    export_onnx(made, ExportOptions(dialect, accuracy_level=0), tmp_path / "onnx")
    loaded = load(str(tmp_path / "onnx"), threads=1)
    written = texts(3, LENGTH, loaded.session.vocabulary)
    alone = [loaded.session.score(text) for text in written]
    batch = open_batch(loaded, BatchOptions(sequences=5))
    assert isinstance(batch, OnnxBatch)
    schedule = Schedule(batch, written, alone, 1, TOLERANCE)
    schedule.run(60)
    assert schedule.compared > 40
    assert schedule.wrong == []


def test_fixed_shapes_are_driven_one_by_one(tmp_path: Path) -> None:
    made = quantized(write_checkpoint(tmp_path / "m"), tmp_path / "q", bits=4)
    options = ExportOptions("std17", context_length=64, prefill_length=8)
    export_onnx(made, options, tmp_path / "onnx")
    batch = open_batch(load(str(tmp_path / "onnx"), threads=1))
    assert isinstance(batch, OneByOne)
    assert batch.max_sequences == 1


def test_a_full_cache_refuses(loaded: Loaded) -> None:
    batch = OnnxBatch(loaded.session, 1, 3)  # type: ignore[arg-type]
    assert batch.max_sequences == 1
    sequence = batch.add()
    assert not batch.fits([Piece(sequence, some_tokens(40))])
    with pytest.raises(MemoryError):
        batch.step([Piece(sequence, some_tokens(40))])
    assert batch.length(sequence) == 0
