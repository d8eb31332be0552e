"""Quantized checkpoints: other readers agree, the bytes are always the same, bad input fails."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from logits import largest_difference, random_tokens
from outputs import folder_hash, quantized
from reference_models import tiny_checkpoint, tiny_model
from safetensors import safe_open
from safetensors.numpy import load_file

from dsconv.convert.checkpoint import jobs as jobs_module
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize import rounding
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.quantize.run_state import Listeners
from dsconv.errors import InputError, OutputError, UnsupportedError, UsageError
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.schemes import METHODS

VOCABULARY = 160
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("untied"), "qwen2", **SIZES)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    return tiny_checkpoint(folder, "llama", tie_word_embeddings=True, **SIZES)


def theirs(folder: Path, tokens: list[int]) -> Any:
    """Logits of transformers, which unpacks through compressed-tensors."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].numpy()


def ours(checkpoint: Checkpoint, tokens: list[int]) -> Any:
    return TorchModel.load(checkpoint).forward(tokens).numpy()


def hashes(folder: Path) -> str:
    assert (folder / "dsconv.json").is_file()
    return folder_hash(folder)


# ---------------------------------------------------------------- other readers


BODY = [
    {"bits": bits, "group_size": group, "symmetric": True}
    for bits, group in itertools.product((4, 8), (32, 64, 128, -1))
]
# transformers 5.23 cannot load packed zero points or embeddings in place: it is told to unpack
# while loading, which passes through float16 (exact for 4 bits only).
UNPACKED: list[dict[str, Any]] = [
    {"bits": 4, "group_size": 32, "symmetric": False},
    {"bits": 4, "group_size": 128, "symmetric": False},
    {"bits": 4, "embedding_bits": 4},
    {"bits": 4, "embedding_bits": 4, "symmetric": False},
]
HEADS: list[dict[str, Any]] = [{"head_bits": 8}, {"head_bits": 16}, {"bits": 8, "head_bits": 4}]
UNPACKED_8: list[dict[str, Any]] = [
    {"bits": 8, "symmetric": False},
    {"bits": 8, "embedding_bits": 8},
    {"bits": 8, "embedding_bits": 8, "symmetric": False, "group_size": 64},
]


@pytest.mark.parametrize("options", BODY + UNPACKED + HEADS + UNPACKED_8, ids=str)
@pytest.mark.parametrize("model", ["untied", "tied"])
def test_transformers_computes_the_same(
    model: str, options: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = quantized(request.getfixturevalue(model), tmp_path / "q", **options)
    tokens = random_tokens(32, VOCABULARY)
    wanted = theirs(tmp_path / "q", tokens)
    limit = 2e-2 * np.abs(wanted).max() if options in UNPACKED_8 else 1e-5
    assert largest_difference(ours(checkpoint, tokens), wanted) <= limit


@pytest.mark.parametrize("model", ["untied", "tied"])
@pytest.mark.parametrize("method", METHODS)
def test_the_files_hold_what_rounding_gave(
    model: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every matrix read back equals its own quantization; vectors are unchanged to the bit."""
    source = open_checkpoint(str(request.getfixturevalue(model)))
    options = {"symmetric": False, "method": method, "embedding_bits": 8}
    checkpoint = quantized(request.getfixturevalue(model), tmp_path / "q", **options)
    for name, parameter in checkpoint.parameters.items():
        if parameter.role is Role.VECTOR:
            np.testing.assert_array_equal(checkpoint.rows(name), source.rows(name))
            continue
        # A tied head has no tensor of its own, and an untied head takes the bits of the body.
        bits = 8 if parameter.role is Role.EMBEDDING else 4
        wanted = METHODS[method](source.rows(name), IntegerScheme(bits, 32, False)).dequantize()
        np.testing.assert_array_equal(checkpoint.rows(name), wanted)
        np.testing.assert_array_equal(checkpoint.rows(name, 13, 51), wanted[13:51])


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ({"hidden_size": 96, "num_attention_heads": 6}, {96: 32}),
        ({"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 80}, {48: 16, 80: 16}),
        ({"hidden_size": 100, "num_attention_heads": 5, "head_dim": 20}, {100: -1}),
    ],
)
def test_groups_fall_back_where_they_do_not_divide(
    sizes: dict[str, Any], groups: dict[int, int], tmp_path: Path
) -> None:
    changes = {"num_key_value_heads": 1, "vocab_size": 161, **sizes}
    tiny_checkpoint(tmp_path / "m", "llama", **changes)
    checkpoint = quantized(tmp_path / "m", tmp_path / "q", group_size=128)
    for name, parameter in checkpoint.parameters.items():
        if parameter.role in (Role.LINEAR, Role.HEAD) and parameter.shape[1] in groups:
            assert checkpoint.scheme(name) == IntegerScheme(4, groups[parameter.shape[1]])
    tokens = random_tokens(32, 161)
    assert largest_difference(ours(checkpoint, tokens), theirs(tmp_path / "q", tokens)) <= 1e-5


def test_a_tied_embedding_is_stored_once(tied: Path, tmp_path: Path) -> None:
    shared = quantized(tied, tmp_path / "shared", embedding_bits=4)
    assert shared.decoder.config.tie_word_embeddings
    assert not any(name.startswith("lm_head") for name in shared.source.names())
    parted = quantized(tied, tmp_path / "parted")
    assert not parted.decoder.config.tie_word_embeddings
    assert parted.scheme("model.embed_tokens.weight") is None
    assert parted.scheme("lm_head.weight") == IntegerScheme(4, 32)
    kept = quantized(tied, tmp_path / "kept", head_bits=16)
    assert kept.decoder.config.tie_word_embeddings
    assert kept.scheme("model.embed_tokens.weight") is None


@pytest.mark.parametrize("model", ["untied", "tied"])
def test_bits_per_weight_count_every_stored_byte(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = open_checkpoint(str(request.getfixturevalue(model)))
    result = quantize_checkpoint(source, QuantizeOptions(symmetric=False), tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    assert result.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert result.parameters == source.parameter_count
    assert result.bits_per_weight == 8 * result.weight_bytes / source.parameter_count


def test_side_files_are_carried_along(untied: Path, tmp_path: Path) -> None:
    quantized(untied, tmp_path / "q")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "q" / name).read_bytes() == (untied / name).read_bytes()


def test_bfloat16_stays_bfloat16_where_it_is_not_quantized(tmp_path: Path) -> None:
    tiny_model("qwen2").to(torch.bfloat16).save_pretrained(tmp_path / "m")
    quantized(tmp_path / "m", tmp_path / "q")
    with safe_open(tmp_path / "q" / "model.safetensors", "np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds["model.embed_tokens.weight"] == kinds["model.norm.weight"] == "BF16"
    assert kinds["model.layers.0.self_attn.q_proj.bias"] == "BF16"
    assert kinds["lm_head.weight_packed"] == "I32"
    assert kinds["lm_head.weight_scale"] == "F16"


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("options", [{}, {"symmetric": False, "embedding_bits": 8}], ids=str)
def test_the_bytes_depend_on_nothing_but_the_input(
    options: dict[str, Any], untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized(untied, tmp_path / "first", threads=2, **options)
    wanted = hashes(tmp_path / "first")
    monkeypatch.setattr(jobs_module, "CHUNK_WEIGHTS", 128 * 24)  # many chunks per matrix
    monkeypatch.setattr(rounding, "BLOCK_WEIGHTS", 128 * 7)
    for threads in (1, 2, 3):
        quantized(untied, tmp_path / str(threads), threads=threads, **options)
        assert hashes(tmp_path / str(threads)) == wanted


def test_the_manifest_knows_every_file(untied: Path, tmp_path: Path) -> None:
    quantized(untied, tmp_path / "q")
    manifest = json.loads((tmp_path / "q" / "dsconv.json").read_text())
    names = {path.name for path in (tmp_path / "q").iterdir()} - {"dsconv.json"}
    assert set(manifest["sha256"]) == names
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((tmp_path / "q" / name).read_bytes()).hexdigest() == digest
    inputs = manifest["source"]["sha256"]
    for name, digest in inputs.items():
        assert hashlib.sha256((untied / name).read_bytes()).hexdigest() == digest
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(inputs)
    assert str(tmp_path) not in json.dumps(manifest)


def adjacent(folder: Path, names: list[str]) -> bool:
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    ranges = [header[name]["data_offsets"] for name in names]
    return all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_a_runtime_may_fuse_lies_side_by_side(
    symmetric: bool, untied: Path, tmp_path: Path
) -> None:
    quantized(untied, tmp_path / "q", symmetric=symmetric)
    kinds = ["weight_packed", "weight_scale"] + ([] if symmetric else ["weight_zero_point"])
    for layer, kind in itertools.product(range(2), [*kinds, "bias"]):
        attention, mlp = (f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp"))
        assert adjacent(tmp_path / "q", [f"{attention}.{name}_proj.{kind}" for name in "qkv"])
        if kind != "bias":
            gate_up = [f"{mlp}.{name}_proj.{kind}" for name in ("gate", "up")]
            assert adjacent(tmp_path / "q", gate_up)


def test_codes_are_aligned_for_any_kernel(untied: Path, tmp_path: Path) -> None:
    quantized(untied, tmp_path / "q")
    with (tmp_path / "q" / "model.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    assert (8 + length) % 64 == 0
    for name, entry in header.items():
        if name.endswith("weight_packed"):
            assert entry["data_offsets"][0] % 32 == 0


def test_shards(untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files and an index that every reader follows; a fusable group is never split."""
    whole = quantized(untied, tmp_path / "whole")
    monkeypatch.setattr(jobs_module, "MAX_SHARD_BYTES", 60_000)
    sharded = quantized(untied, tmp_path / "q")
    index = json.loads((tmp_path / "q" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "q").glob("model-*.safetensors"))
    assert len(files) > 2
    assert [path.name for path in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    held = {path.name: load_file(path) for path in files}
    assert index["weight_map"] == {name: file for file, held_ in held.items() for name in held_}
    total = sum(tensor.nbytes for tensors in held.values() for tensor in tensors.values())
    assert index["metadata"]["total_size"] == total
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn"
        assert len({index["weight_map"][f"{prefix}.{n}_proj.weight_packed"] for n in "qkv"}) == 1
    tokens = random_tokens(32, VOCABULARY)
    np.testing.assert_array_equal(ours(sharded, tokens), ours(whole, tokens))
    assert largest_difference(theirs(tmp_path / "q", tokens), ours(whole, tokens)) <= 1e-5


# ---------------------------------------------------------------- bad input


def damaged(tmp_path: Path, name: str, values: list[float], **changes: Any) -> Path:
    """A checkpoint whose tensor `name` begins with `values`."""
    model = tiny_model("qwen2", **changes)
    with torch.no_grad():
        flat = dict(model.named_parameters())[name].view(-1)
        flat[: len(values)] = torch.tensor(values)
    model.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.down_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.norm.weight",
    ],
)
@pytest.mark.parametrize("embedding_bits", [4, 16])
def test_nan_and_infinity_are_counted(tmp_path: Path, name: str, embedding_bits: int) -> None:
    folder = damaged(tmp_path, name, [float("nan"), float("inf"), -float("inf")])
    with pytest.raises(InputError, match=rf"tensor '{re.escape(name)}': 3 of \d+ values are NaN"):
        quantized(folder, tmp_path / "q", embedding_bits=embedding_bits)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing half-done is left


def test_nan_is_counted_over_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "CHUNK_WEIGHTS", 64 * 8)
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.lm_head.weight[::10, 0] = float("nan")
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match=r"'lm_head\.weight': 16 of 10240 values"):
        quantized(tmp_path / "m", tmp_path / "q")


@pytest.mark.parametrize("method", METHODS)
def test_weights_too_large_for_float16_scales(tmp_path: Path, method: str) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = damaged(tmp_path, name, [1e30])
    with pytest.raises(InputError, match=rf"tensor '{re.escape(name)}': a scale of .* float16"):
        quantized(folder, tmp_path / "q", method=method)


def test_constant_rows_survive(tmp_path: Path) -> None:
    """Groups of one value, as real models hold them: no NaN, and exactly that value."""
    value = float(np.float32(ml_dtypes.bfloat16(0.0123)))
    folder = damaged(tmp_path, "lm_head.weight", [value] * 64)
    for symmetric in (True, False):
        checkpoint = quantized(folder, tmp_path / str(symmetric), symmetric=symmetric)
        assert set(checkpoint.rows("lm_head.weight", 0, 1).ravel().tolist()) == {value}
        assert np.isfinite(ours(checkpoint, random_tokens(8, VOCABULARY))).all()


def test_quantized_twice_is_refused(untied: Path, tmp_path: Path) -> None:
    quantized(untied, tmp_path / "q")
    with pytest.raises(UnsupportedError, match="already quantized"):
        quantized(tmp_path / "q", tmp_path / "again")


def test_an_existing_output_is_refused_before_any_work(untied: Path, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="already exists"):
        quantized(untied, tmp_path / "q")
    assert (tmp_path / "q" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(("head", "embedding"), [(4, 8), (8, 4), (16, 8)])
def test_one_shared_matrix_cannot_have_two_widths(
    tied: Path, tmp_path: Path, head: int, embedding: int
) -> None:
    with pytest.raises(UsageError, match=f"head bits {head} differ from embedding bits"):
        quantized(tied, tmp_path / "q", head_bits=head, embedding_bits=embedding)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3},
        {"bits": 16},
        {"head_bits": 5},
        {"embedding_bits": 0},
        {"group_size": 48},
        {"group_size": 0},
        {"method": "magic"},
    ],
    ids=str,
)
def test_options_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not"):
        QuantizeOptions(**options)


def test_progress_reaches_the_number_of_weights(tied: Path, tmp_path: Path) -> None:
    source = open_checkpoint(str(tied))
    told: list[int] = []
    options = QuantizeOptions(embedding_bits=4)
    quantize_checkpoint(source, options, tmp_path / "q", listeners=Listeners(advance=told.append))
    assert sum(told) == source.parameter_count
