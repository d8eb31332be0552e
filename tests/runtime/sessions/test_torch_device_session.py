"""Torch sessions with packed weights and a cache in place, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from logits import largest_difference, random_tokens
from outputs import quantized
from reference_models import tiny_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.open import open_checkpoint
from dsconv.quant.integer import IntegerScheme
from dsconv.runtime.sessions.packed_linear import (
    KernelMatrix,
    PackedMatrix,
    kernel_takes,
    kernel_works,
    load_matrix,
)
from dsconv.runtime.sessions.torch_device_session import (
    FIRST_CAPACITY,
    PREFILL_CHUNK,
    AcceleratorSession,
    grouped_attention,
)
from dsconv.runtime.sessions.torch_reference import TorchSession

VOCABULARY = 160
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
CASES = {
    "int4": ("llama", WIDE, {"bits": 4}),
    "int4 zero points": ("qwen2", WIDE, {"bits": 4, "symmetric": False, "group_size": 64}),
    "int4 tied, packed embedding": (
        "qwen3",
        {**WIDE, "tie_word_embeddings": True},
        {"bits": 4, "embedding_bits": 4},
    ),
    "int4 odd sizes, whole rows": (
        "llama",
        {"hidden_size": 100, "intermediate_size": 90, "num_attention_heads": 5, "head_dim": 20}
        | {"num_key_value_heads": 1},
        {"bits": 4},
    ),
    "int8": ("qwen2", {}, {"bits": 8, "symmetric": False}),
    "int8 activations": ("llama", {}, {"bits": 8, "activations": "int8"}),
}


@pytest.fixture(scope="module", params=CASES)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    family, sizes, options = CASES[request.param]
    folder = tmp_path_factory.mktemp("accelerator")
    sizes = {"max_position_embeddings": 2048, **sizes}
    return quantized(tiny_checkpoint(folder / "m", family, **sizes), folder / "q", **options)


def relative(found: object, wanted: np.ndarray) -> float:
    return largest_difference(found, wanted) / float(np.abs(wanted).max())


def test_scores_prefill_and_decode_are_the_references(checkpoint: Checkpoint) -> None:
    tokens = random_tokens(40, VOCABULARY)
    expected = TorchSession(checkpoint).score(tokens)
    session = AcceleratorSession(checkpoint, "cpu")
    assert relative(session.score(tokens), expected) < 1e-4
    session.reset()
    assert relative(session.prefill(tokens[:30]), expected[29]) < 1e-4
    for index in range(30, 40):
        assert relative(session.decode(tokens[index]), expected[index]) < 1e-4
    session.truncate(35)
    assert relative(session.extend(tokens[35:]), expected[35:]) < 1e-4
    assert session.position == 40


def test_the_cache_grows_across_chunks(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama", max_position_embeddings=2048)
    checkpoint = open_checkpoint(str(folder))
    tokens = random_tokens(FIRST_CAPACITY + PREFILL_CHUNK + 9, VOCABULARY)
    expected = TorchSession(checkpoint).score(tokens)
    session = AcceleratorSession(checkpoint, "cpu")
    start = FIRST_CAPACITY - 2
    session.prefill(tokens[:start])
    for index in range(start, start + 4):  # over the end of the first buffer
        assert relative(session.decode(tokens[index]), expected[index]) < 1e-4
    assert relative(session.extend(tokens[start + 4 :]), expected[start + 4 :]) < 1e-4


def test_one_token_attends_as_many_do() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, 1, 8, generator=generator)
    keys, values = (torch.randn(1, 2, 11, 8, generator=generator) for _ in "kv")
    mask = (torch.arange(11) <= 6)[None]
    alone = grouped_attention(query, keys, values, mask)
    pair = grouped_attention(query.repeat(1, 1, 2, 1), keys, values, mask.repeat(2, 1))
    assert largest_difference(alone[:, :, 0], pair[:, :, 1]) < 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_packed_and_kernel_products_are_those_of_the_dequantized_matrix(
    tmp_path: Path, group_size: int, symmetric: bool
) -> None:
    source = tiny_checkpoint(tmp_path / "m", "llama", tokenizer=False, **WIDE)
    options = {"group_size": group_size, "symmetric": symmetric}
    checkpoint = quantized(source, tmp_path / "q", bits=4, **options)
    name = "model.layers.0.mlp.down_proj.weight"
    weight = torch.from_numpy(checkpoint.rows(name).copy())
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    packed = load_matrix(checkpoint, name, torch.float32, "cpu", gathers=True)
    assert isinstance(packed, PackedMatrix)
    assert torch.equal(packed.rows(torch.tensor([5, 0, 5])), weight[[5, 0, 5]])
    assert relative(packed.product(x), (x @ weight.T).numpy()) < 1e-5
    kernel = load_matrix(checkpoint, name, torch.float32, "cpu")
    assert isinstance(kernel, KernelMatrix) is (group_size != -1)
    assert relative(kernel.product(x), (x @ weight.T).numpy()) < 1e-4


@pytest.mark.parametrize(
    ("scheme", "shape", "dtype", "device", "takes"),
    [
        (IntegerScheme(4, 128), (256, 256), torch.bfloat16, "cuda", True),
        (IntegerScheme(4, 128), (256, 256), torch.float16, "cuda", False),
        (IntegerScheme(4, 128), (250, 256), torch.bfloat16, "cuda", False),
        (IntegerScheme(4, 32), (256, 96), torch.bfloat16, "cuda", False),
        (IntegerScheme(4, -1), (256, 256), torch.bfloat16, "cuda", False),
        (IntegerScheme(8, 128), (256, 256), torch.bfloat16, "cuda", False),
        (IntegerScheme(4, 128), (256, 256), torch.bfloat16, "meta", False),
    ],
)
def test_which_matrices_torchs_kernel_takes(
    scheme: IntegerScheme, shape: tuple[int, int], dtype: torch.dtype, device: str, takes: bool
) -> None:
    assert kernel_takes(scheme, shape, dtype, device) is takes


def test_packed_weights_stay_packed_on_any_device(tmp_path: Path) -> None:
    """On `meta` nothing is computed, but every operator must exist for a device without kernels."""
    source = tiny_checkpoint(tmp_path / "m", "llama", tokenizer=False, **WIDE)
    checkpoint = quantized(source, tmp_path / "q", bits=4)
    name = "model.layers.0.mlp.down_proj.weight"
    packed = load_matrix(checkpoint, name, torch.bfloat16, "meta")
    assert isinstance(packed, PackedMatrix)
    assert packed.product(torch.empty(2, 256, dtype=torch.bfloat16, device="meta")).shape == (
        2,
        128,
    )


def test_the_kernel_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_works("cpu", torch.float32)
    assert kernel_works("cpu", torch.bfloat16)
    real = KernelMatrix.product

    def missing(self: KernelMatrix, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no such operator on this device")

    for other in (lambda self, x: real(self, x).roll(1, -1), missing):
        monkeypatch.setattr(KernelMatrix, "product", other)
        assert not kernel_works.__wrapped__("cpu", torch.float32)


@pytest.mark.parametrize("case", ["int4", "int4 zero points", "int8"])
def test_in_bfloat16_as_accelerators_compute(case: str, tmp_path: Path) -> None:
    """Mixed types show on the CPU too."""
    family, sizes, options = CASES[case]
    checkpoint = quantized(
        tiny_checkpoint(tmp_path / "m", family, **sizes), tmp_path / "q", **options
    )
    tokens = random_tokens(24, VOCABULARY)
    expected = TorchSession(checkpoint).score(tokens)
    session = AcceleratorSession(checkpoint, "cpu", dtype=torch.bfloat16)
    assert relative(session.score(tokens[:20]), expected[:20]) < 0.05
    for index in range(20, 24):
        assert relative(session.decode(tokens[index]), expected[index]) < 0.05


needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no NVIDIA GPU: CUDA graphs not tested"
)


@needs_cuda
def test_captured_decoding_on_cuda(checkpoint: Checkpoint) -> None:
    """On the last device, which is not the current one where there are several."""
    tokens = random_tokens(24, VOCABULARY)
    expected = TorchSession(checkpoint).score(tokens)
    session = AcceleratorSession(checkpoint, f"cuda:{torch.cuda.device_count() - 1}")
    session.prefill(tokens[:16])
    for index in range(16, 24):
        assert relative(session.decode(tokens[index]), expected[index]) < 0.05
    session.truncate(18)
    for index in range(18, 24):
        assert relative(session.decode(tokens[index]), expected[index]) < 0.05


@needs_cuda
def test_a_captured_step_is_captured_again_when_the_cache_grows(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama", max_position_embeddings=2048)
    checkpoint = open_checkpoint(str(folder))
    tokens = random_tokens(FIRST_CAPACITY + 6, VOCABULARY)
    expected = TorchSession(checkpoint).score(tokens)
    session = AcceleratorSession(checkpoint, "cuda")
    session.prefill(tokens[: FIRST_CAPACITY - 4])
    for index in range(FIRST_CAPACITY - 4, len(tokens)):
        assert relative(session.decode(tokens[index]), expected[index]) < 0.05
