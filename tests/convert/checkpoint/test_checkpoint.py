"""Opening a checkpoint: shards, dtypes, ties, side files, and what does not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from small_models import (
    DTYPES,
    random_tensors,
    small_config,
    write_checkpoint,
    write_json,
    write_shards,
    write_side_files,
)

from dsconv.convert.checkpoint.checkpoint import eos_token_ids
from dsconv.convert.files import limits
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError, UnsupportedError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"


def write_raw(folder: Path, tensors: dict[str, NDArray[Any]], **changes: Any) -> str:
    folder.mkdir()
    write_json(folder / "config.json", small_config(**changes))
    write_shards(folder, tensors)
    return str(folder)


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_is_read_as_it_was_written(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=shards, torch_dtype=dtype)
    checkpoint = open_checkpoint(str(folder))
    expected = random_tensors(small_config(torch_dtype=dtype))
    assert set(checkpoint.parameters) == set(expected)
    assert checkpoint.parameter_count == sum(array.size for array in expected.values())
    assert len(checkpoint.source.files()) == shards
    for name, array in expected.items():
        found = checkpoint.rows(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array.astype(np.float32))


def test_uneven_shard_names_are_taken_from_the_index(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    names = [path.name for path in open_checkpoint(str(folder)).source.files()]
    assert names == ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"]


def test_one_file_may_have_any_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert open_checkpoint(str(folder)).parameters


def test_a_file_that_the_index_does_not_name_is_ignored(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    (folder / "consolidated.safetensors").write_bytes(b"not for us")
    assert open_checkpoint(str(folder)).parameters


def test_a_tensor_in_two_shards_comes_from_the_one_that_the_index_names(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    other = folder / next(shard for shard in index.values() if shard != index[EMBEDDING])
    tensors = load_file(other)
    tensors[EMBEDDING] = np.zeros((264, 64), np.float32)
    (folder / "extra").mkdir()
    write_shards(folder / "extra", tensors)
    (folder / "extra" / "model.safetensors").rename(other)
    assert open_checkpoint(str(folder)).rows(EMBEDDING).any()


@pytest.mark.parametrize("stored_as", [EMBEDDING, HEAD])
def test_a_tied_matrix_may_be_stored_under_either_name(tmp_path: Path, stored_as: str) -> None:
    tensors = random_tensors(small_config(tie_word_embeddings=True))
    matrix = tensors.pop(EMBEDDING)
    tensors[stored_as] = matrix
    checkpoint = open_checkpoint(write_raw(tmp_path / "m", tensors, tie_word_embeddings=True))
    np.testing.assert_array_equal(checkpoint.rows(EMBEDDING), matrix.astype(np.float32))
    assert HEAD not in checkpoint.parameters


def test_an_untied_head_is_not_ignored(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    del tensors[HEAD]
    with pytest.raises(InputError, match=r"'lm_head\.weight' is missing"):
        open_checkpoint(write_raw(tmp_path / "m", tensors))


def test_rotary_buffers_of_old_exports_are_ignored(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    assert open_checkpoint(write_raw(tmp_path / "m", tensors)).parameters


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_])
def test_weights_that_are_no_floats_are_refused(tmp_path: Path, dtype: type[Any]) -> None:
    """int8 weights without their scales would be read as numbers up to 127."""
    tensors = random_tensors(small_config())
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = np.ones(tensors[name].shape, dtype)
    with pytest.raises(InputError, match="up_proj") as caught:
        open_checkpoint(write_raw(tmp_path / "m", tensors))
    assert "is stored as" in caught.value.message


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("weight_packed", np.int64), ("weight_packed", np.float32), ("weight_scale", np.int32)],
)
def test_codes_and_scales_must_have_their_types(
    tmp_path: Path, kind: str, dtype: type[Any]
) -> None:
    source = open_checkpoint(str(write_checkpoint(tmp_path / "m")))
    quantize_checkpoint(source, QuantizeOptions(), tmp_path / "q")
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.0.mlp.up_proj.{kind}"
    tensors[name] = tensors[name].astype(dtype)
    path.unlink()
    write_shards(tmp_path / "q", tensors)
    with pytest.raises(InputError, match=kind):
        open_checkpoint(str(tmp_path / "q"))


def test_side_files_are_kept_byte_for_byte(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / "LICENSE").write_bytes(b"MIT \xff")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "merges.txt").mkdir()
    side_files = open_checkpoint(str(folder)).side_files
    assert set(side_files) == {
        "LICENSE",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    for name, content in side_files.items():
        assert content == (folder / name).read_bytes()


def test_a_huge_side_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIDE_FILE_BYTES", 10)
    with pytest.raises(InputError, match="limit 10"):
        open_checkpoint(str(write_checkpoint(tmp_path / "m")))


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [5, 6]}, 7, (5, 6)),
        ({"eos_token_id": 5}, 7, (5,)),
        ({"eos_token_id": None}, 7, (7,)),
        ({}, [7, 8], (7, 8)),
        (None, 7, (7,)),
        (None, None, ()),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(
    tmp_path: Path, generation: object, config: object, expected: tuple[int, ...]
) -> None:
    folder = write_checkpoint(tmp_path / "m", eos_token_id=config)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    assert eos_token_ids(open_checkpoint(str(folder))) == expected


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickles_are_never_opened(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    write_json(folder / "config.json", small_config())
    write_side_files(folder)
    pickle = folder / f"pytorch_model{suffix}"
    pickle.write_bytes(b"\x80\x04.")
    for model in (folder, pickle):
        with pytest.raises(UnsupportedError, match="pickle"):
            open_checkpoint(str(model))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="neither a folder nor a GGUF file"):
        open_checkpoint(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("model", ["", "no-such-folder", "./a/b", "a/b/c", "x" * 5000, "../x"])
def test_what_is_neither_a_path_nor_a_hub_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        open_checkpoint(model)


def test_a_quantized_checkpoint_tells_its_schemes(tmp_path: Path) -> None:
    source = open_checkpoint(str(write_checkpoint(tmp_path / "m")))
    quantize_checkpoint(source, QuantizeOptions(head_bits=8), tmp_path / "q")
    checkpoint = open_checkpoint(str(tmp_path / "q"))
    bits = {name: checkpoint.scheme(name) for name in checkpoint.parameters}
    assert bits[EMBEDDING] is None
    assert bits["model.norm.weight"] is None
    head, down = bits[HEAD], bits["model.layers.0.mlp.down_proj.weight"]
    assert head is not None
    assert down is not None
    assert (head.bits, down.bits) == (8, 4)
    np.testing.assert_allclose(checkpoint.rows(HEAD), source.rows(HEAD), atol=0.01)
