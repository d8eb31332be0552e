"""The streamed forward against transformers, and how little memory it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from logits import largest_difference, random_tokens
from reference_models import tiny_checkpoint, tiny_model

from dsconv.convert.forward.streamed_forward import StreamedForward, Window
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint


def logits(forward: StreamedForward, index: int, positions: int = 5) -> Any:
    return np.concatenate(list(forward.logits(index, positions)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    path = tiny_checkpoint(tmp_path / "m", family, tie_word_embeddings=tied)
    model = tiny_model(family, tie_word_embeddings=tied)
    windows = [random_tokens(length, 160, length) for length in (1, 17, 40)]
    forward = StreamedForward(open_checkpoint(str(path)), [Window(w) for w in windows])
    for index, window in enumerate(windows):
        with torch.no_grad():
            expected = model(torch.tensor([window])).logits[0].numpy()
        assert largest_difference(logits(forward, index), expected) < 1e-4


def test_both_precisions_in_one_pass(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "m", "qwen2")))
    window = random_tokens(30, 160)
    forward = StreamedForward(checkpoint, [Window(window), Window(window, "bfloat16")])
    wide, narrow = TorchModel.load(checkpoint), TorchModel.load(checkpoint, "bfloat16")
    assert largest_difference(logits(forward, 0), wide.forward(window).numpy()) < 1e-4
    # the norms of a bfloat16 model are read in bfloat16, as here
    assert largest_difference(logits(forward, 1), narrow.forward(window).float().numpy()) < 0.1
    assert largest_difference(logits(forward, 0), logits(forward, 1)) > 1e-3


def test_states_beyond_the_limit_go_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "m", "llama")))
    windows = [Window(random_tokens(20, 160, seed)) for seed in range(3)]
    expected = [logits(StreamedForward(checkpoint, windows), index) for index in range(3)]
    monkeypatch.setattr(
        "dsconv.convert.forward.streamed_forward.STATE_BYTES", 20 * 64 * 4
    )  # one window
    spilled = StreamedForward(checkpoint, windows)
    for index in range(3):
        np.testing.assert_array_equal(logits(spilled, index), expected[index])


def test_a_layer_is_read_once_and_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "m", "llama")))
    read: list[str] = []
    rows = type(checkpoint).rows

    def spy(self: Any, name: str, *bounds: int) -> Any:
        read.append(name)
        return rows(self, name, *bounds)

    monkeypatch.setattr(type(checkpoint), "rows", spy)
    windows = [
        Window(random_tokens(20, 160, seed), d) for seed in (0, 1) for d in ("float32", "bfloat16")
    ]
    done: list[int] = []
    StreamedForward(checkpoint, windows, done.append)
    in_layers = [name for name in read if ".layers." in name]
    assert len(in_layers) == len(set(in_layers)) > 0
    assert "lm_head.weight" not in read
    assert sum(done) == 2 * 4 * 20
