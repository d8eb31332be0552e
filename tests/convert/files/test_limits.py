"""Every limit: what is at it passes, what is above it is refused by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.artifacts import write_small_gguf
from hostile.gguf_documents import Document, Tensor, Value
from places import ROOT
from small_models import small_config, write_checkpoint

from dsconv.convert.families import read_family
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader, parse_json, read_json_object
from dsconv.convert.files.safetensors import PlannedTensor, SafetensorsWriter, read_tensor_infos
from dsconv.convert.formats.gguf.container import read_header
from dsconv.convert.formats.native.format import Metadata
from dsconv.convert.formats.native.steps import Program
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.formats.onnx.external_data import read_model
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.build.recipe import load_recipe
from dsconv.runtime.sessions.onnx_fixed import FixedOnnxSession

DOCUMENTATION = ROOT / "docs" / "limits.md"


def constants() -> dict[str, int | float]:
    return {name: value for name, value in vars(limits).items() if name.isupper() and name != "MIB"}


@pytest.mark.parametrize("name", constants())
def test_the_documentation_has_it(name: str) -> None:
    rows = [line for line in DOCUMENTATION.read_text("utf-8").splitlines() if f"`{name}`" in line]
    assert len(rows) == 1
    value = constants()[name]
    texts = {f"{value:,}", f"{value / limits.MIB:g} MiB", f"{value:g}"}
    assert any(text in rows[0] for text in texts)


# ---------------------------------------------------------------- a lower limit, the same rule


def json_file(folder: Path) -> None:
    (folder / "f.json").write_text('{"a": 12}')
    read_json_object(folder / "f.json")


def deep_json(folder: Path) -> None:
    parse_json("[" * 9 + "1" + "]" * 9, "f.json")


def side_file(folder: Path) -> None:
    model = write_checkpoint(folder / "m")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (model / name).unlink()
    (model / "LICENSE").write_bytes(b"x" * 9)
    open_checkpoint(str(model))


def recipe(folder: Path) -> None:
    text = 'description = "d"\nsource = "s"\n'
    (folder / "r.toml").write_text(text)
    load_recipe(str(folder / "r.toml"))


def graph(folder: Path) -> None:
    from onnx import helper

    node = helper.make_node("Identity", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    read_model(folder / "m.onnx")


def tensors(folder: Path, name: str = "t", shape: tuple[int, ...] = (1,), count: int = 1) -> None:
    planned = [PlannedTensor(f"{name}{i or ''}", "U8", shape) for i in range(count)]
    with SafetensorsWriter(folder / "f", planned) as writer:
        for tensor in planned:
            writer.write(tensor.name, np.zeros(tensor.nbytes, np.uint8))
    read_tensor_infos(folder / "f")


def index(folder: Path) -> None:
    model = write_checkpoint(folder / "m", shards=3)
    open_checkpoint(str(model))


def gguf(**changes: Any) -> Callable[[Path], None]:
    """A small file with other pieces."""

    def write(folder: Path) -> None:
        write_small_gguf(folder / "m.gguf", "qwen2")
        document = Document.read(folder / "m.gguf")
        pieces = {name: change(document) for name, change in changes.items()}
        (folder / "m.gguf").write_bytes(Document(**{**vars(document), **pieces}).encode())
        read_header(folder / "m.gguf")

    return write


def program(buffers: int, steps: int) -> Callable[[Path], None]:
    step = {"op": "embedding", "weight": "w", "output": 0}

    def read(folder: Path) -> None:
        Program.read(ConfigReader({"buffers": [1] * buffers, "steps": [step] * steps}, "m.dsq"))

    return read


# Constant -> the part's size, what reads it.
LOWERED: dict[str, tuple[int, Callable[[Path], None]]] = {
    "JSON_BYTES": (9, json_file),
    "JSON_DEPTH": (9, deep_json),
    "SIDE_FILE_BYTES": (9, side_file),
    "RECIPE_BYTES": (31, recipe),
    "GRAPH_BYTES": (29, graph),
    "HEADER_BYTES": (120, tensors),
    "TENSORS": (3, lambda folder: tensors(folder, count=3)),
    "RANK": (5, lambda folder: tensors(folder, shape=(1,) * 5)),
    "NAME_BYTES": (6, lambda folder: tensors(folder, name="éöü")),
    "SHARDS": (3, index),
    "GGUF_KEYS": (21, gguf()),
    "GGUF_ARRAY_ITEMS": (197, gguf()),
    "GGUF_RANK": (2, gguf()),
    "GGUF_ALIGNMENT": (32, gguf()),
    "BUFFERS": (3, program(3, 1)),
    "STEPS": (4, program(1, 4)),
}


@pytest.mark.parametrize("name", LOWERED)
def test_at_the_limit_and_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    size, read = LOWERED[name]
    for folder in ("at", "above"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(limits, name, size)
    read(tmp_path / "at")
    monkeypatch.setattr(limits, name, size - 1)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "above")
    assert str(size) in caught.value.message or name == "JSON_DEPTH"  # deeper is not counted
    assert str(size - 1) in caught.value.message


def test_as_many_tensors_as_allowed_are_listed_in_time(tmp_path: Path) -> None:
    """One more is refused before a second goes into parsing."""
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    for count, limit in ((limits.TENSORS, 2.0), (limits.TENSORS + 1, 0.5)):
        header = b"{" + b",".join([entry % number for number in range(count)]) + b"}"
        (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header)
        seconds = []
        for _ in range(3):  # the best counts: even a processor's own time depends on its neighbour
            start = time.process_time()
            if count == limits.TENSORS:
                assert len(read_tensor_infos(tmp_path / "f")) == count
            else:
                with pytest.raises(InputError, match=f"{count} tensors, limit {limits.TENSORS}"):
                    read_tensor_infos(tmp_path / "f")
            seconds.append(time.process_time() - start)
            if seconds[-1] < limit:
                break
        assert min(seconds) < limit


def test_the_mask_of_fixed_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path / "m")))
    options = ExportOptions(dialect="std21", prefill_length=4, context_length=16)
    export_onnx(checkpoint, options, tmp_path / "onnx")
    size = 4 * 4 * (16 + 4)
    monkeypatch.setattr(limits, "MASK_BYTES", size)
    FixedOnnxSession(tmp_path / "onnx")
    monkeypatch.setattr(limits, "MASK_BYTES", size - 1)
    with pytest.raises(InputError, match=f"{size} bytes, limit {size - 1}"):
        FixedOnnxSession(tmp_path / "onnx")


def test_a_message_is_short_enough_to_read() -> None:
    error = InputError("where: " + "x" * 10**6 + ", limit 7", "y" * 5000)
    assert len(error.message) <= 1000
    assert len(error.hint) <= 1000
    assert error.message.startswith("where: xxx")
    assert error.message.endswith("xxx, limit 7")
    assert str(error) == error.message
    assert InputError("x" * 1000, "y").message == "x" * 1000


# ---------------------------------------------------------------- the real values

CONFIG_KEYS = {
    "num_hidden_layers": "LAYERS",
    "vocab_size": "VOCABULARY",
    "hidden_size": "HIDDEN",
    "intermediate_size": "INTERMEDIATE",
    "max_position_embeddings": "POSITIONS",
    "head_dim": "HIDDEN",
}


@pytest.mark.parametrize("key", CONFIG_KEYS)
def test_a_config_at_the_limit_and_above(key: str) -> None:
    limit = int(constants()[CONFIG_KEYS[key]])
    read_family(ConfigReader(small_config(**{key: limit}), "config.json"))
    with pytest.raises(InputError, match=rf"{key}: .*{limit}"):
        read_family(ConfigReader(small_config(**{key: 2 * limit}), "config.json"))


def test_real_values_of_containers(tmp_path: Path) -> None:
    tensors(tmp_path, name="n" * limits.NAME_BYTES)
    with pytest.raises(InputError, match="513 bytes, limit 512"):
        tensors(tmp_path, name="n" * (limits.NAME_BYTES + 1))
    tensors(tmp_path, shape=(1,) * limits.RANK)
    with pytest.raises(InputError, match="rank 9, limit 8"):
        tensors(tmp_path, shape=(1,) * (limits.RANK + 1))
    with (tmp_path / "f").open("wb") as file:
        file.write((limits.HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * limits.HEADER_BYTES)
    with pytest.raises(InputError, match=r"header of 100000001 bytes .*limit 100000000"):
        read_tensor_infos(tmp_path / "f")


@pytest.mark.parametrize("limit", ["JSON_BYTES", "TOKENIZER_BYTES"])
def test_real_sizes_of_files(tmp_path: Path, limit: str) -> None:
    """A sparse file above the limit is refused unread."""
    model = write_checkpoint(tmp_path / "m")
    name = "tokenizer.json" if limit == "TOKENIZER_BYTES" else "config.json"
    with (model / name).open("wb") as file:
        file.truncate(int(constants()[limit]) + 1)
    with pytest.raises(InputError, match=rf"{name}: {constants()[limit] + 1} bytes, limit"):
        open_checkpoint(str(model))


def test_names_of_gguf(tmp_path: Path) -> None:
    for good, bad in ((b"n" * 512, b"n" * 513), (b"n", b"a\nb")):
        for what in ("keys", "tensors"):
            pieces: dict[bytes, Callable[[Document], list[Any]]] = {
                name: _with_name(what, name) for name in (good, bad)
            }
            gguf(**{what: pieces[good]})(tmp_path)
            with pytest.raises(InputError, match=r"limit 512|control character"):
                gguf(**{what: pieces[bad]})(tmp_path)


def _with_name(what: str, name: bytes) -> Callable[[Document], list[Any]]:
    if what == "keys":
        return lambda document: [*document.keys, (name, Value(4, 1))]

    def tensors_of(document: Document) -> list[Any]:
        last = max(document.tensors, key=lambda tensor: tensor.offset)
        return [tensor for tensor in document.tensors if tensor is not last] + [
            Tensor(name, last.dims, last.kind, last.offset)
        ]

    return tensors_of


def test_heads_and_sizes_of_native_files() -> None:
    entry = {"kind": "int8", "group_size": 0, "rows": limits.DIMENSION + 1, "cols": 1}
    texts = {"dsq_format_version": "1", "context_length": "1", "config": "{}"}
    program_text = {"buffers": [1], "steps": [{"op": "embedding", "weight": "w", "output": 0}]}
    texts |= {"program": json.dumps(program_text), "matrices": json.dumps({"w": entry})}
    with pytest.raises(InputError, match=f"rows: .*{limits.DIMENSION}"):
        Metadata.decode(texts, "m.dsq")
    attention = dict.fromkeys(("layer", "query", "key", "value", "output"), 0)
    step = {"op": "attention", **attention, "heads": limits.HEADS + 1, "kv_heads": 1}
    with pytest.raises(InputError, match=f"heads: .*{limits.HEADS}"):
        Program.read(ConfigReader({"buffers": [1], "steps": [step]}, "m.dsq"))
