"""Blocks of every type that GGUF has, against llama.cpp itself and the package gguf."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_models import FEED, HEAD_DIM, HEADS, HIDDEN, metadata, plain_tensors, write_gguf
from numpy.typing import NDArray
from processes.llama_cpp_blocks import known_types, llama_cpp_blocks, llama_cpp_weights
from processes.llama_cpp_process import next_token_log_probabilities

from dsconv.convert.formats.gguf import decode
from dsconv.convert.formats.gguf.block_types import TYPES, UNREADABLE
from dsconv.convert.formats.gguf.decode import PLAIN, dequantize
from dsconv.convert.open import open_checkpoint
from dsconv.errors import UnsupportedError
from dsconv.runtime.sessions.torch_reference import TorchSession

NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
SIZES = {name: size for name, _, size in TYPES.values()}
BLOCK_TYPES = [name for name, elements, _ in TYPES.values() if elements > 1]
# float16 numbers at the edges: none, the least, the greatest, negative ones, no numbers.
HALVES = np.array([0, 0x8000, 1, 0x8001, 0x7BFF, 0xFBFF, 0x3C00, 0xBC00, 0x7C00, 0x7E00], "<u2")
NOT_IN_GGUF = ("Q8_K", "Q1_0", "Q2_0")  # which the package gguf does not decode


def random_blocks(name: str) -> NDArray[np.uint8]:
    """Any bytes; then blocks all of one byte; then those whose float16 numbers are odd."""
    number, size = NUMBERS[name], SIZES[name]
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (1024, 2 * size), np.uint8)
    for byte in range(256):
        blocks[byte] = byte
    for row in range(256, 512):
        place = rng.choice([0, 2, size - 2, size - 4])
        half = HALVES[rng.integers(len(HALVES))]
        blocks[row, place : place + 2] = np.frombuffer(half.tobytes(), np.uint8)
    return blocks


def test_every_type_of_llama_cpp_is_known() -> None:
    for number, (name, elements, size) in known_types().items():
        if elements == 0 or number in UNREADABLE:
            assert number in UNREADABLE, name
        else:
            assert TYPES[number] == (TYPES[number][0], elements, size)
            assert TYPES[number][0].lower() == name.lower()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_to_the_bit_as_llama_cpp_decodes(name: str) -> None:
    blocks = random_blocks(name)
    expected = llama_cpp_weights(NUMBERS[name], blocks)
    with np.errstate(all="ignore"):
        ours = dequantize(blocks, NUMBERS[name])
    numbers = ~np.isnan(expected)
    assert numbers.mean() > 0.5
    np.testing.assert_array_equal(np.isnan(ours), ~numbers)
    np.testing.assert_array_equal(ours.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])


@pytest.mark.parametrize("name", [name for name in BLOCK_TYPES if name not in NOT_IN_GGUF])
def test_as_the_package_gguf_decodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PIECE_WEIGHTS", 1000)  # several pieces
    number, size = NUMBERS[name], SIZES[name]
    blocks = random_blocks(name)[:, :size]
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, Kind(number))
        ours = dequantize(blocks, number)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers_are_what_is_stored(name: str) -> None:
    values = np.arange(-60, 60).reshape(4, 30).astype(PLAIN[name])
    stored = values.view(np.uint8)
    np.testing.assert_array_equal(dequantize(stored, NUMBERS[name]), values.astype(np.float32))


# ---------------------------------------------------------------- files


def model_of_type(path: Path, name: str, dequantized: bool = False) -> Path:
    """All matrices in blocks of one type, or in float32 what llama.cpp makes of those blocks."""
    number = NUMBERS[name]
    tensors = {}
    for key, (values, kind) in plain_tensors("llama").items():
        stored: NDArray[np.generic] = values
        if values.ndim == 2:
            blocks = llama_cpp_blocks(number, 0.06 * values)
            stored, kind = (blocks, Kind(number))
            if dequantized:
                stored, kind = llama_cpp_weights(number, blocks), Kind.F32
        elif key.endswith("norm.weight"):
            stored = 1 + 0.1 * values
        tensors[key] = (stored, kind)
    return write_gguf(path, "llama", metadata("llama"), tensors)


COMMON = ("Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "MXFP4")
OTHERS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0"),
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"),
)


@pytest.mark.parametrize(
    "name", [*COMMON, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_logits_as_llama_cpp_computes_them(tmp_path: Path, name: str) -> None:
    """Ours of the file against llama.cpp's of the same weights in float32, which its kernels do
    not round; and against llama.cpp's of the file itself, where they round activations."""
    path = model_of_type(tmp_path / "blocks.gguf", name)
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.source.storage("model.layers.0.mlp.up_proj.weight") == name
    prompts = [[5, 9, 40, 77], [33, 2, 60, 61, 62, 8, 4, 12]]
    session = TorchSession(checkpoint)
    ours = np.stack([session.score(prompt)[-1] for prompt in prompts]).astype(np.float64)
    ours -= np.logaddexp.reduce(ours, axis=1, keepdims=True)
    floats = model_of_type(tmp_path / "floats.gguf", name, dequantized=True)
    theirs = next_token_log_probabilities(floats, prompts, session.vocabulary, exact=True)
    assert float(np.abs(ours - theirs).max()) < 1e-4
    own = next_token_log_probabilities(path, prompts, session.vocabulary)
    assert float(np.abs(ours - own).max()) < 0.1 * float(np.abs(own).max())


def test_rows_of_a_head_come_back_in_their_order(tmp_path: Path) -> None:
    number = NUMBERS["IQ4_XS"]
    rng = np.random.default_rng(1)
    query = llama_cpp_blocks(number, rng.standard_normal((HEADS * HEAD_DIM, HIDDEN), np.float32))
    tensors = {**plain_tensors("llama"), "blk.1.attn_q.weight": (query, Kind.IQ4_XS)}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata("llama"), tensors)
    expected = llama_cpp_weights(number, query)
    heads = expected.reshape(HEADS, HEAD_DIM // 2, 2, HIDDEN).swapaxes(1, 2).reshape(-1, HIDDEN)
    checkpoint = open_checkpoint(str(path))
    for start, stop in ((0, HIDDEN), (0, 1), (17, 150), (HIDDEN - 1, HIDDEN)):
        rows = checkpoint.rows("model.layers.1.self_attn.q_proj.weight", start, stop)
        np.testing.assert_array_equal(rows, heads[start:stop])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (9, r"blk\.0\.ffn_up\.weight.*Q8_1.*activations"),
        (31, r"blk\.0\.ffn_up\.weight.*Q4_0_4_4.*dropped"),
        (4, r"blk\.0\.ffn_up\.weight.*Q4_2.*dropped"),
        (77, r"blk\.0\.ffn_up\.weight.*number 77.*newer"),
    ],
)
def test_types_without_a_reader_are_named(tmp_path: Path, number: int, words: str) -> None:
    blocks = np.zeros((FEED, HIDDEN), np.int8)
    tensors = {**plain_tensors("llama"), "blk.0.ffn_up.weight": (blocks, Kind.I8)}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata("llama"), tensors)
    data = path.read_bytes()
    place = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 16
    assert data[place] == Kind.I8
    path.write_bytes(data[:place] + bytes([number]) + data[place + 1 :])
    with pytest.raises(UnsupportedError, match=words):
        open_checkpoint(str(path))
