"""`.dsq` files: what is written comes back bit by bit, and a file that lies is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_models import CASES, exported, native_checkpoint
from safetensors import safe_open

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.files.safetensors import read_rows
from dsconv.convert.formats.native.export import export_native
from dsconv.convert.formats.native.file import NativeFile, open_native_file
from dsconv.convert.formats.native.linear_layout import unpack_linear
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError, OutputError, UnsupportedError, UsageError
from dsconv.runtime.sessions.native import NativeSession


def quantized(model: Path, output: Path, **options: Any) -> Checkpoint:
    quantize_checkpoint(
        open_checkpoint(str(model)), QuantizeOptions(method="rtn", threads=2, **options), output
    )
    return open_checkpoint(str(output))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One layer, few tokens, everything that a file can hold."""
    folder = tmp_path_factory.mktemp("source")
    model = native_checkpoint(
        folder / "model",
        **{**CASES["qwen3 biases"], "num_hidden_layers": 1, "hidden_size": 32},
        intermediate_size=48,
    )
    return quantized(model, folder / "q", bits=4, embedding_bits=4, symmetric=False)


@pytest.fixture(scope="module")
def file(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> NativeFile:
    return exported(source, tmp_path_factory.mktemp("file") / "model.dsq")


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "group_size": 32, "symmetric": False, "embedding_bits": 8},
        {"bits": 8, "group_size": -1, "head_bits": 4},
        {"bits": 3, "scheme_name": "scale-min", "embedding_bits": 6},
    ],
    ids=str,
)
def test_codes_and_scales_are_carried_over(tmp_path: Path, options: dict[str, Any]) -> None:
    model = native_checkpoint(tmp_path / "model", intermediate_size=112, vocab_size=270)
    checkpoint = quantized(model, tmp_path / "q", **options)
    file = exported(checkpoint, tmp_path / "m.dsq")
    for name, layout in file.metadata.matrices.items():
        stored = unpack_linear(read_rows(file.tensors[name]).reshape(-1), layout)
        if checkpoint.scheme(name) is None:
            np.testing.assert_array_equal(stored, checkpoint.source.rows(name))
            continue
        wanted = checkpoint.quantized_rows(name, 0, layout.rows)
        np.testing.assert_array_equal(stored.codes, wanted.codes)
        np.testing.assert_array_equal(stored.dequantize(), wanted.dequantize())
    vectors = set(file.tensors) - set(file.metadata.matrices) - {"rotary.0.frequencies"}
    assert vectors == {name for name, p in checkpoint.parameters.items() if len(p.shape) == 1}
    for name in vectors:
        np.testing.assert_array_equal(read_rows(file.tensors[name]), checkpoint.rows(name))


def test_other_readers_list_it(file: NativeFile) -> None:
    with safe_open(file.path, "np") as reader:
        assert set(reader.keys()) == set(file.tensors)
        assert reader.metadata()["dsq_format_version"] == "1"
        name = "model.layers.0.mlp.up_proj.weight"
        np.testing.assert_array_equal(reader.get_tensor(name), read_rows(file.tensors[name]))


def test_matrices_are_aligned(file: NativeFile) -> None:
    assert all(file.tensors[name].offset % 64 == 0 for name in file.metadata.matrices)


def test_side_files_come_back_unchanged(source: Checkpoint, tmp_path: Path) -> None:
    content = {
        **source.side_files,
        "LICENSE": b"\xff\x00 no UTF-8",
        "merges.txt": b"a b\n" * 50_000,
    }
    changed = Checkpoint(
        source.origin,
        source.config,
        source.decoder,
        source.source,
        content,
        source.quantization,
    )
    file = exported(changed, tmp_path / "m.dsq")
    assert file.side_files == content
    assert file.metadata.config == source.config
    assert "side_file:merges.txt" in file.tensors


def test_the_same_bytes_for_any_number_of_threads(source: Checkpoint, tmp_path: Path) -> None:
    for threads in (1, 3):
        export_native(source, tmp_path / f"{threads}.dsq", threads=threads)
    assert (tmp_path / "1.dsq").read_bytes() == (tmp_path / "3.dsq").read_bytes()


def test_progress_counts_every_weight(source: Checkpoint, tmp_path: Path) -> None:
    counts: list[int] = []
    result = export_native(source, tmp_path / "m.dsq", advance=counts.append)
    assert sum(counts) == source.parameter_count
    assert result.bytes_written == (tmp_path / "m.dsq").stat().st_size


def test_a_damaged_tensor_is_found(file: NativeFile, tmp_path: Path) -> None:
    assert not file.damaged_tensors()
    data = bytearray(file.path.read_bytes())
    name = "model.layers.0.mlp.up_proj.weight"
    data[file.tensors[name].offset + 5] ^= 1
    path = tmp_path / "m.dsq"
    path.write_bytes(data)
    assert open_native_file(path).damaged_tensors() == [name]
    with pytest.raises(InputError, match="up_proj"):
        describe(str(path))


def test_inspect(file: NativeFile) -> None:
    described = describe(str(file.path))
    assert (described.kind, described.family) == ("native", "qwen3")
    rows = {row.name: row for row in described.tensors}
    assert rows["lm_head.weight"].storage == "int4 g32 asymmetric"
    assert rows["model.norm.weight"].storage == "F32"
    assert rows["lm_head.weight"].shape == (264, 32)


# ---------------------------------------------------------------- what is refused at export


def test_refused_exports(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one file"):
        export_native(source, tmp_path / "model")
    (tmp_path / "m.dsq").write_bytes(b"x")
    with pytest.raises(OutputError):
        export_native(source, tmp_path / "m.dsq")
    export_native(source, tmp_path / "m.dsq", overwrite=True)
    open_native_file(tmp_path / "m.dsq")


def test_weights_that_no_kernel_takes(tmp_path: Path) -> None:
    model = native_checkpoint(tmp_path / "model")
    rows = quantized(model, tmp_path / "q", bits=8, activations="int8")
    with pytest.raises(UnsupportedError, match="int8 inputs"):
        export_native(rows, tmp_path / "m.dsq")
    assert not list(tmp_path.glob("m.dsq*"))


def test_floats_that_do_not_fit(tmp_path: Path) -> None:
    model = native_checkpoint(tmp_path / "model", dtype="float32", bias=0.0)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"][3, 4] = 1e6
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight"):
        export_native(open_checkpoint(str(model)), tmp_path / "m.dsq")


# ---------------------------------------------------------------- files that lie


def rewritten(file: NativeFile, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy whose header went through `change`; the texts of the metadata come parsed."""
    data = file.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    texts = header["__metadata__"]
    parsed = {key: json.loads(text) for key, text in texts.items()}
    header["__metadata__"] = parsed
    change(header)
    header["__metadata__"] = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in parsed.items()
    }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])
    return path


def step(header: dict[str, Any], op: str) -> dict[str, Any]:
    """The first step of a kind."""
    steps = header["__metadata__"]["program"]["steps"]
    return next(step for step in steps if step["op"] == op)


def matrix(header: dict[str, Any], name: str = "lm_head.weight") -> dict[str, Any]:
    entry: dict[str, Any] = header["__metadata__"]["matrices"][name]
    return entry


def _matrix_as_vector(header: dict[str, Any]) -> None:
    header["model.norm.weight2"] = header.pop("lm_head.weight")
    header["__metadata__"]["matrices"].pop("lm_head.weight")


def _drop_first_linear(header: dict[str, Any]) -> None:
    steps = header["__metadata__"]["program"]["steps"]
    steps.remove(step(header, "linear"))


LIES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "another version": ("version", lambda h: h["__metadata__"].update(dsq_format_version="2")),
    "no version": ("not a native", lambda h: h["__metadata__"].pop("dsq_format_version")),
    "no program": ("program", lambda h: h["__metadata__"].pop("program")),
    "no steps": ("steps", lambda h: h["__metadata__"]["program"].update(steps=[])),
    "unknown step": ("'softmax'", lambda h: step(h, "norm").update(op="softmax")),
    "unknown kind": ("int5", lambda h: matrix(h).update(kind="int5")),
    "another kind": ("takes", lambda h: matrix(h).update(kind="int8")),
    "more rows": ("takes", lambda h: matrix(h).update(rows=2**31 - 1)),
    "no rows": ("outside", lambda h: matrix(h).update(rows=0)),
    "odd group": ("group_size", lambda h: matrix(h).update(group_size=24)),
    "other rows, same blocks": ("logits", lambda h: matrix(h).update(rows=263)),
    "missing matrix": ("missing", lambda h: h.update(other=h.pop("lm_head.weight"))),
    "buffer out of range": ("buffer 99", lambda h: step(h, "embedding").update(output=99)),
    "huge buffer": (
        "a width",
        lambda h: h["__metadata__"]["program"].update(buffers=[2**40]),
    ),
    "idle buffer": (
        "not used",
        lambda h: h["__metadata__"]["program"]["buffers"].append(2**30),
    ),
    "norm in place": (
        "overlap",
        lambda h: step(h, "linear").update(normed=step(h, "linear")["input"]),
    ),
    "read before written": ("before it is written", _drop_first_linear),
    "layer twice": ("layer", lambda h: step(h, "attention").update(layer=1)),
    "no heads": ("outside", lambda h: step(h, "attention").update(kv_heads=0)),
    "uneven heads": ("over", lambda h: step(h, "attention").update(kv_heads=3)),
    "larger heads": ("heads take", lambda h: step(h, "attention").update(head_dim=48)),
    "unknown vector": ("'x'", lambda h: step(h, "attention").update(frequencies="x")),
    "wrong vector": (
        "needed",
        lambda h: step(h, "attention").update(key_bias="rotary.0.frequencies"),
    ),
    "unused tensor": (
        "not used",
        lambda h: step(h, "linear")["matrices"][0].update(bias=None),
    ),
    "huge epsilon": ("epsilon", lambda h: step(h, "head")["norm"].update(epsilon=1e300)),
    "no head": ("no head", lambda h: h["__metadata__"]["program"]["steps"].pop()),
    "matrix as vector": ("not a vector of F32", _matrix_as_vector),
    "context of nothing": ("context_length", lambda h: h["__metadata__"].update(context_length=0)),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(file: NativeFile, tmp_path: Path, lie: str) -> None:
    words, change = LIES[lie]
    path = rewritten(file, tmp_path / "m.dsq", change)
    with pytest.raises(InputError, match=words):
        open_native_file(path)


def test_the_rewriting_itself_is_harmless(file: NativeFile, tmp_path: Path) -> None:
    open_native_file(rewritten(file, tmp_path / "m.dsq", lambda header: None))


def test_a_plain_safetensors_file_is_no_native_one(source: Checkpoint) -> None:
    with pytest.raises(InputError, match="not a native one"):
        open_native_file(source.source.files()[0])


def test_a_file_that_shrinks_after_the_check(file: NativeFile, tmp_path: Path) -> None:
    path = tmp_path / "m.dsq"
    path.write_bytes(file.path.read_bytes())
    checked = open_native_file(path)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(InputError, match="changed"):
        NativeSession(checked)
