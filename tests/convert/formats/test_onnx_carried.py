"""A folder whose graph has its matrices in another order carries them once, and is a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from outputs import quantized
from reference_models import tiny_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.files.safetensors import read_tensor_infos
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.formats.onnx.graph_check import check_graph
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.verify.circumstances import narrowest_bits

ODD = {"hidden_size": 100, "intermediate_size": 90, "num_attention_heads": 5}
ODD |= {"num_key_value_heads": 1, "head_dim": 20, "vocab_size": 161}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("qwen2", {}, {}),
    "qwen2 asymmetric": ("qwen2", {}, {"symmetric": False, "embedding_bits": 4}),
    "odd sizes, asymmetric": ("llama", ODD, {"symmetric": False}),
    "per row, asymmetric": ("llama", {}, {"group_size": -1, "symmetric": False}),
    "8 bits": ("qwen3", {}, {"bits": 8}),
    "tied, head of its own": ("qwen2", {"tie_word_embeddings": True}, {"head_bits": 8}),
    "tied": ("llama", {"tie_word_embeddings": True}, {"embedding_bits": 8}),
}
ORDERS = pytest.mark.parametrize("dialect", ["std17", "std21", "std24"])


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    family, changes, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    tiny_checkpoint(folder / "m", family, **changes)
    return quantized(folder / "m", folder / "q", **options)


def read_bytes(folder: Path) -> dict[str, int]:
    """Bytes of every weights file that the graph refers to."""
    found: dict[str, set[tuple[int, int]]] = {}
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            span = (int(place.get("offset", 0)), int(place["length"]))
            found.setdefault(place["location"], set()).add(span)
    return {name: sum(length for _, length in spans) for name, spans in found.items()}


@ORDERS
def test_every_tensor_is_as_it_was(made: Checkpoint, dialect: str, tmp_path: Path) -> None:
    export_onnx(made, ExportOptions(dialect), tmp_path / "onnx")
    opened = open_checkpoint(str(tmp_path / "onnx"))
    assert sorted(opened.source.names()) == sorted(made.source.names())
    for name in made.source.names():
        assert opened.source.shape(name) == made.source.shape(name)
        assert opened.source.dtype(name) == made.source.dtype(name)
        np.testing.assert_array_equal(opened.source.rows(name), made.source.rows(name), name)
    for name, parameter in made.parameters.items():
        middle = parameter.shape[0] // 3
        for start, stop in ((0, middle), (middle, middle + 1), (middle, parameter.shape[0])):
            rows = opened.rows(name, start, stop)
            np.testing.assert_array_equal(rows, made.rows(name, start, stop), name)
    assert check_graph(tmp_path / "onnx", opened) == []
    assert describe(str(tmp_path / "onnx")).tensors == describe(str(made.origin)).tensors


@ORDERS
def test_nothing_is_carried_that_is_not_read(
    made: Checkpoint, dialect: str, tmp_path: Path
) -> None:
    export_onnx(made, ExportOptions(dialect), tmp_path / "onnx")
    read = read_bytes(tmp_path / "onnx")
    weights = tmp_path / "onnx" / "model.safetensors"
    carried = sum(info.nbytes for info in read_tensor_infos(weights).values())
    assert carried - read["model.safetensors"] <= 0.05 * made.parameter_count
    assert not list((tmp_path / "onnx").glob("*.kept"))


@pytest.mark.parametrize("prefill_length", [None, 16])
def test_float16_matrices_are_the_weights(
    made: Checkpoint, prefill_length: int | None, tmp_path: Path
) -> None:
    options = ExportOptions("std17", precision="float16", prefill_length=prefill_length)
    export_onnx(made, options, tmp_path / "onnx")
    assert not list((tmp_path / "onnx").glob("*.safetensors"))
    opened = open_checkpoint(str(tmp_path / "onnx"))
    assert opened.quantization is None
    for name, parameter in made.parameters.items():
        expected = made.rows(name)
        if len(parameter.shape) == 2:
            expected = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(opened.rows(name), expected, name)
    assert check_graph(tmp_path / "onnx", opened) == []
    before, now = (narrowest_bits(p, describe(p)) for p in (str(made.origin), f"{tmp_path}/onnx"))
    assert now == pytest.approx(before)


def test_a_float_checkpoint_that_is_only_transposed_at_load_stays_whole(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "m", "qwen2")
    export_onnx(open_checkpoint(str(tmp_path / "m")), ExportOptions("std17"), tmp_path / "onnx")
    whole = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert (tmp_path / "onnx" / "model.safetensors").read_bytes() == whole


def test_it_can_be_exported_again_as_codes(made: Checkpoint, tmp_path: Path) -> None:
    export_onnx(made, ExportOptions("std21"), tmp_path / "std21")
    export_onnx(open_checkpoint(str(tmp_path / "std21")), ExportOptions(), tmp_path / "contrib")
    opened = open_checkpoint(str(tmp_path / "contrib"))
    for name in made.source.names():
        np.testing.assert_array_equal(opened.source.rows(name), made.source.rows(name), name)


@pytest.mark.parametrize("damage", ["short", "missing", "other shape"])
def test_a_damaged_file_of_the_graph_is_named(damage: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "m", "qwen2")
    made = quantized(tmp_path / "m", tmp_path / "q")
    folder = tmp_path / "onnx"
    export_onnx(made, ExportOptions("std17"), folder)
    data = folder / "model.onnx.data"
    if damage == "short":
        data.write_bytes(data.read_bytes()[:-200])
    elif damage == "missing":
        data.unlink()
    else:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        codes = next(t for t in model.graph.initializer if t.name.endswith("_codes"))
        codes.dims[0], codes.dims[1] = codes.dims[0] * 2, codes.dims[1] // 2
        onnx.save(model, folder / "model.onnx")
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(folder))
    assert "onnx" in str(caught.value)


def test_inspect_shows_a_folder_without_any_safetensors(made: Checkpoint, tmp_path: Path) -> None:
    export_onnx(made, ExportOptions("std17", precision="float16"), tmp_path / "onnx")
    found = describe(str(tmp_path / "onnx"))
    assert found.kind == "onnx"
    assert {row.storage for row in found.tensors} == {"F16", "F32"}
