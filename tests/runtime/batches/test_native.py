"""A sequence on the native engine gets the same bits alone and in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_schedules import Schedule, texts
from logits import largest_difference
from native_models import exported, native_checkpoint, reference_logits, some_tokens
from outputs import quantized
from small_models import LLAMA, QWEN3

from dsconv.convert.formats.native.file import NativeFile
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.batches.batch import Piece, Want
from dsconv.runtime.batches.native import NativeBatch
from dsconv.runtime.sessions.native import NativeOptions, NativeSession, available_kernels

ROOM = 1 << 24
TEXT = 560  # tokens: past the second border of blocks
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "qwen2, large key biases, int4": ({}, {"bits": 4, "embedding_bits": 4}),
    "qwen3, odd heads, int8": (
        {**QWEN3, "attention_bias": True, "head_dim": 24, "vocab_size": 270, "hidden_size": 96},
        {"bits": 8},
    ),
    "llama, scale-min": ({**LLAMA}, {"bits": 4, "scheme_name": "scale-min"}),
    "llama, float": ({**LLAMA}, None),
}


@pytest.fixture(scope="module", params=MODELS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeFile:
    changes, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp("native")
    model = native_checkpoint(folder / "model", **changes)
    if options is None:
        return exported(model, folder / "m.dsq")
    return exported(quantized(model, folder / "q", **options), folder / "m.dsq")


def session(file: NativeFile, activations: str = "int8", **options: Any) -> NativeSession:
    same = {"decode": activations, "prefill": activations, "score": activations}
    return NativeSession(file, NativeOptions(**{"threads": 1, **options, **same}))


def differences(
    file: NativeFile, seed: int, passes: int = 30, bytes_: int = ROOM, **options: Any
) -> list[str]:
    running = session(file, **options)
    written = texts(4, TEXT, running.vocabulary)
    alone = [running.score(text) for text in written]
    rng = np.random.default_rng(seed)
    threads = int(rng.integers(1, 4))
    other = session(file, **{**options, "threads": threads})
    batch = NativeBatch(other, options.get("activations", "int8"), bytes_, 12)
    schedule = Schedule(batch, written, alone, seed)
    schedule.run(passes)
    assert schedule.compared
    assert batch.free_positions == batch.capacity
    return schedule.wrong


@pytest.mark.parametrize("activations", ["int8", "own", "int16"])
@pytest.mark.parametrize("cache", ["fp16", "int8", "fp32"])
@pytest.mark.parametrize("kernels", available_kernels())
def test_bits_do_not_depend_on_the_company(
    file: NativeFile, activations: str, cache: str, kernels: str
) -> None:
    slow = kernels == "scalar"
    options = {"activations": activations, "cache": cache, "kernels": kernels}
    assert differences(file, seed=1, passes=6 if slow else 40, **options) == []


def test_bits_do_not_depend_on_the_pieces_of_a_prompt(file: NativeFile) -> None:
    tokens = some_tokens(TEXT)
    whole = session(file).score(tokens)
    for size in (1, 2, 3, 7, 8, 9, 31, 255, 256):
        pieces, running = [], session(file)
        for start in range(0, len(tokens), size):
            pieces.append(running.extend(tokens[start : start + size]).copy())
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_logits_are_those_of_the_reference(tmp_path: Path) -> None:
    model = native_checkpoint(tmp_path / "model", **LLAMA)
    file = exported(model, tmp_path / "m.dsq")
    batch = NativeBatch(session(file, "int16"), "int16", ROOM)
    tokens = some_tokens(300)
    numbers = [batch.add() for _ in range(3)]
    got = batch.step([Piece(number, tokens[:80], Want.EVERY) for number in numbers])
    wanted = reference_logits(model, tokens[:80])
    for rows in got:
        assert rows is not None
        assert largest_difference(rows, wanted) < 0.02


def test_beginnings_lie_in_memory_once(file: NativeFile) -> None:
    batch = NativeBatch(session(file), "int8", ROOM)
    first, tokens = batch.add(), some_tokens(TEXT)
    for start in range(0, TEXT, 256):
        batch.step([Piece(first, tokens[start : start + 256], Want.NONE)])
    used = batch.capacity - batch.free_positions
    others = [batch.fork(first, 520) for _ in range(5)]
    assert batch.capacity - batch.free_positions == used
    batch.step([Piece(number, [3], Want.NONE) for number in others])
    # Each has a block of its own from 512 on.
    assert batch.capacity - batch.free_positions == used + 5 * 256
    for number in others:
        batch.drop(number)
    assert batch.capacity - batch.free_positions == used


def test_a_full_cache_refuses_and_changes_nothing(file: NativeFile) -> None:
    running = session(file)
    small = NativeBatch(running, "int8", 1)
    assert small.capacity == 256
    number, tokens = small.add(), some_tokens(257)
    first = small.step([Piece(number, tokens[:200])])[0]
    assert first is not None
    kept = first.copy()
    more = Piece(number, tokens[200:])
    assert not small.fits([more])
    with pytest.raises(MemoryError):
        small.step([more])
    assert small.length(number) == 200
    small.truncate(number, 199)
    again = small.step([Piece(number, tokens[199:200])])[0]
    np.testing.assert_array_equal(again, kept)


def test_what_is_wrong_is_refused_before_the_pass(file: NativeFile) -> None:
    batch = NativeBatch(session(file), "int8", ROOM, sequences=2)
    number = batch.add()
    with pytest.raises(InputError, match=f"token {batch.vocabulary} "):
        batch.step([Piece(number, [batch.vocabulary])])
    with pytest.raises(ValueError, match="no sequence 7"):
        batch.step([Piece(7, [1])])
    with pytest.raises(ValueError, match="no sequence 0"):  # the session's own
        batch.step([Piece(0, [1])])
    with pytest.raises(ValueError, match="two pieces"):
        batch.step([Piece(number, [1]), Piece(number, [2])])
    with pytest.raises(ValueError, match="1 to 256"):
        batch.step([Piece(number, [1] * 257)])
    other = batch.add()
    with pytest.raises(ValueError, match="2 sequences already"):
        batch.fork(other, 0)
    batch.drop(other)
    with pytest.raises(ValueError, match=f"no sequence {other}"):
        batch.length(other)
    assert batch.length(number) == 0


def test_a_sequence_ends_at_its_context(tmp_path: Path) -> None:
    model = native_checkpoint(tmp_path / "model", max_position_embeddings=64, **LLAMA)
    file = exported(open_checkpoint(str(model)), tmp_path / "m.dsq")
    batch = NativeBatch(session(file), "int8", ROOM)
    number = batch.add()
    batch.step([Piece(number, some_tokens(64))])
    with pytest.raises(InputError, match="beyond the context of 64"):
        batch.step([Piece(number, [1])])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_ten_thousand_schedules(file: NativeFile, first: int) -> None:
    """2,500 for each model."""
    activations = ("own", "int8", "int16")[first // 500 % 3]
    running = session(file, activations)
    written = texts(4, TEXT, running.vocabulary)
    alone = [running.score(text) for text in written]
    for seed in range(first, first + 125):
        rng = np.random.default_rng(seed)
        other = session(file, activations, threads=int(rng.integers(1, 4)))
        room = ROOM if seed % 3 else 1 << 19  # where the cache is often full
        schedule = Schedule(NativeBatch(other, activations, room, 12), written, alone, seed)
        schedule.run(30)
        assert schedule.wrong == [], seed
