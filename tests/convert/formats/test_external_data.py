"""Where a graph's weights may lie: hostile locations at every entry point, and honest ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from small_models import write_checkpoint

from dsconv.convert.files.local_files import open_regular
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.formats.onnx.external_data import check_external_data, read_model
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.convert.targets import graph_view
from dsconv.convert.targets.lint import lint
from dsconv.convert.targets.table import TARGETS
from dsconv.errors import InputError
from dsconv.runtime.sessions.onnx import OnnxSession
from dsconv.runtime.sessions.onnx_graph import open_graph

BYTES = bytes(range(16))
SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def tensor(
    location: str = "w.bin",
    dims: tuple[int, ...] = (4,),
    kind: int = TensorProto.FLOAT,
    **entries: object,
) -> Any:
    """A weight that lies outside of its graph."""
    weight = onnx.TensorProto(name="w", data_type=kind, dims=dims)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        if value is not None:
            weight.external_data.add(key=key, value=str(value))
    return weight


def write_graph(folder: Path, weight: Any) -> Path:
    """y = x + w, with its 16 bytes of weights beside it."""
    folder.mkdir(exist_ok=True)
    if not os.path.lexists(folder / "w.bin"):
        (folder / "w.bin").write_bytes(BYTES)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.FLOAT, [4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_an_honest_graph_runs(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "g", tensor(offset=0, length=16))
    check_external_data(path, read_model(path))
    session = open_graph(path, 4).session
    (found,) = session.run(None, {"x": np.zeros(4, np.float32)})
    np.testing.assert_array_equal(found, np.frombuffer(BYTES, np.float32))


def make_secret(folder: Path) -> Path:
    secret = folder.parent / "secret"
    secret.write_bytes(SECRET)
    return secret


def hard_link(folder: Path) -> None:
    os.link(make_secret(folder), folder / "w.bin")


def soft_link(folder: Path) -> None:
    (folder / "w.bin").symlink_to(make_secret(folder))


def link_inside(folder: Path) -> None:
    (folder / "real").write_bytes(BYTES)
    (folder / "w.bin").symlink_to("real")


def linked_folder(folder: Path) -> None:
    make_secret(folder)
    (folder / "sub").symlink_to("..")


def device(folder: Path) -> None:
    (folder / "w.bin").symlink_to("/dev/zero")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "w.bin")


def directory(folder: Path) -> None:
    (folder / "w.bin").mkdir()


def nothing(folder: Path) -> None:
    make_secret(folder)


def false_blob(folder: Path) -> None:
    """A link to a hash, but not where the hub's cache has them."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    (blobs / ("a" * 64)).write_bytes(SECRET)
    (folder / "w.bin").symlink_to(blobs / ("a" * 64))


# What is prepared in the folder, the weight's place, words of the refusal.
HOSTILE: dict[str, tuple[Callable[[Path], None], Any, str]] = {
    "parent": (nothing, tensor("../secret"), "leads out"),
    "absolute": (nothing, tensor("/etc/hostname"), "leads out"),
    "hidden parent": (nothing, tensor("x/../../secret"), "leads out"),
    "backslash": (nothing, tensor("..\\secret"), "the character"),
    "drive": (nothing, tensor("C:secret"), "the character"),
    "empty": (nothing, tensor(""), "not a name"),
    "no location": (nothing, tensor(location=None), "not a name"),  # type: ignore[arg-type]
    "missing": (nothing, tensor("gone"), "cannot read"),
    "hard link": (hard_link, tensor(), "2 names lead to this file"),
    "symbolic link": (soft_link, tensor(), "symbolic link"),
    "symbolic link inside": (link_inside, tensor(), "symbolic link"),
    "linked folder": (linked_folder, tensor("sub/secret"), "symbolic link"),
    "device": (device, tensor(), "symbolic link"),
    "pipe": (pipe, tensor(), "is a pipe"),
    "folder": (directory, tensor(), "cannot read"),
    "false blob": (false_blob, tensor(), "symbolic link"),
    "offset beyond": (nothing, tensor(offset=1), "ends at byte 17 of w.bin, which has 16"),
    "huge offset": (nothing, tensor(offset=2**60), "ends at byte"),
    "offset overflows": (nothing, tensor(offset=2**64), "not a number of bytes"),
    "negative offset": (nothing, tensor(offset=-4), "not a number of bytes"),
    "offset is text": (nothing, tensor(offset="1e3"), "not a number of bytes"),
    "length too short": (nothing, tensor(length=8), r"8 bytes, its shape \[4\] takes 16"),
    "length too long": (nothing, tensor(length=17), r"17 bytes, its shape \[4\] takes 16"),
    "huge shape": (nothing, tensor(dims=(2**40,)), "ends at byte"),
    "product overflows": (nothing, tensor(dims=(2**33, 2**33)), "ends at byte"),
    "huge shape, short length": (nothing, tensor(dims=(2**40,), length=16), "its shape"),
    "negative shape": (nothing, tensor(dims=(-4,)), "cannot lie in a file"),
    "strings": (nothing, tensor(kind=TensorProto.STRING), "cannot lie in a file"),
    "no type": (nothing, tensor(kind=0), "cannot lie in a file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_location_never_reaches_onnx_runtime(tmp_path: Path, name: str) -> None:
    prepare, weight, words = HOSTILE[name]
    (tmp_path / "g").mkdir()
    prepare(tmp_path / "g")
    path = write_graph(tmp_path / "g", weight)
    with pytest.raises(InputError, match=words):
        open_graph(path, 4)


@pytest.mark.parametrize("name", HOSTILE)
def test_lint_reads_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It reads zero points: here the weight is one."""
    prepare, weight, _ = HOSTILE[name]
    (tmp_path / "g").mkdir()
    prepare(tmp_path / "g")
    path = write_zero_point(tmp_path / "g", weight)
    opened = watched_files(monkeypatch)
    absent = name == "missing" or "ends at" in HOSTILE[name][2]  # then it knows no values
    with nullcontext() if absent else pytest.raises(InputError):
        lint(path, TARGETS["tensorrt"])
    assert opened == []


def test_lint_reads_an_honest_zero_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = watched_files(monkeypatch)
    lint(write_zero_point(tmp_path / "g", tensor()), TARGETS["tensorrt"])
    assert opened == [tmp_path / "g" / "w.bin"]


def write_zero_point(folder: Path, weight: Any) -> Path:
    path = write_graph(folder, weight)
    model = read_model(path)
    model.graph.node[0].op_type = "QuantizeLinear"
    model.graph.node[0].input.insert(1, "x")
    path.write_bytes(model.SerializeToString())
    return path


def watched_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of weights that are read from now on."""
    opened: list[Path] = []

    def watched(path: Path) -> Any:
        opened.append(path)
        return open_regular(path)

    monkeypatch.setattr(graph_view, "open_regular", watched)
    return opened


def nested(weight: Any) -> list[Any]:
    """The weight at every place of a graph where one may be."""
    value = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["z"])],
        "inner",
        [],
        [value("z", TensorProto.FLOAT, [4])],
        [weight],
    )
    constant = helper.make_node("Constant", [], ["c"], value=weight)
    branch = helper.make_node("If", ["k"], ["y"], then_branch=inner, else_branch=inner)
    sparse = helper.make_node("Constant", [], ["c"])
    attribute = sparse.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(weight)
    graphs = [helper.make_graph([node], "g", [], []) for node in (constant, branch, sparse)]
    graphs.append(helper.make_graph([], "g", [], [], sparse_initializer=[attribute.sparse_tensor]))
    models = [helper.make_model(graph) for graph in graphs]
    function = helper.make_function("d", "F", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    models.append(helper.make_model(graphs[0], functions=[function]))
    del models[-1].graph.node[:]
    return models


@pytest.mark.parametrize("place", range(5))
def test_weights_are_found_wherever_they_hide(tmp_path: Path, place: int) -> None:
    (tmp_path / "w.bin").write_bytes(BYTES)
    path = tmp_path / "model.onnx"
    check_external_data(path, nested(tensor())[place])
    with pytest.raises(InputError, match="leads out"):
        check_external_data(path, nested(tensor("../w.bin"))[place])


def test_a_location_given_twice(tmp_path: Path) -> None:
    weight = tensor()
    weight.external_data.add(key="location", value="../secret")
    with pytest.raises(InputError, match="'location' is given twice"):
        open_graph(write_graph(tmp_path / "g", weight), 4)


@pytest.mark.parametrize(
    ("kind", "dims", "size"),
    [
        (TensorProto.UINT4, (3,), 2),
        (TensorProto.INT4, (4, 4), 8),
        (TensorProto.FLOAT16, (2, 3), 12),
        (TensorProto.BFLOAT16, (), 2),
        (TensorProto.INT8, (5, 0), 0),
        (TensorProto.DOUBLE, (2,), 16),
    ],
)
def test_sizes_are_those_of_the_type(
    tmp_path: Path, kind: int, dims: tuple[int, ...], size: int
) -> None:
    path = write_graph(tmp_path / "g", tensor(kind=kind, dims=dims, length=size))
    check_external_data(path, read_model(path))
    path = write_graph(tmp_path / "g", tensor(kind=kind, dims=dims, length=size + 1))
    with pytest.raises(InputError, match=f"takes {size}"):
        check_external_data(path, read_model(path))


# ---------------------------------------------------------------- files with several names


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a user has it: the quantized folder and, linked to it, the export."""
    folder = tmp_path_factory.mktemp("linked")
    source = open_checkpoint(str(write_checkpoint(folder / "model")))
    quantize_checkpoint(source, QuantizeOptions(method="rtn", symmetric=False), folder / "q")
    export_onnx(open_checkpoint(str(folder / "q")), ExportOptions(), folder / "onnx")
    return folder / "onnx"


def test_our_own_links_work(exported: Path, tmp_path: Path) -> None:
    weights, data = exported / "model.safetensors", exported / "model.onnx.data"
    assert weights.stat().st_nlink == 2
    assert data.stat().st_nlink == 1
    OnnxSession(exported).decode(1)
    # As a build does, and tools that keep backups: everything linked once more.
    copy = shutil.copytree(exported, tmp_path / "copy", copy_function=os.link)
    assert (copy / data.name).stat().st_nlink == 2
    OnnxSession(copy).decode(1)


def test_a_linked_file_that_is_not_the_manifests(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    data = copy / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    (tmp_path / "secret").write_bytes(content)
    data.unlink()
    os.link(tmp_path / "secret", data)
    with pytest.raises(InputError, match="2 names"):
        OnnxSession(copy)
    (copy / "dsconv.json").unlink()
    with pytest.raises(InputError, match="2 names"):
        OnnxSession(copy)


def test_a_linked_secret_under_the_name_of_weights(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    size = (copy / "model.safetensors").stat().st_size
    (tmp_path / "secret").write_bytes(SECRET * (size // len(SECRET) + 1))
    (copy / "model.safetensors").unlink()
    os.link(tmp_path / "secret", copy / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: header"):
        OnnxSession(copy)


def test_a_safetensors_file_with_a_tail(tmp_path: Path) -> None:
    """What is not weights from its first byte to its last may hold a secret behind them."""
    (tmp_path / "g").mkdir()
    save_file({"w": np.zeros(4, np.float32)}, tmp_path / "w")
    start = (tmp_path / "w").stat().st_size - 16
    os.link(tmp_path / "w", tmp_path / "g" / "w.safetensors")
    weight = tensor("w.safetensors", offset=start)
    open_graph(write_graph(tmp_path / "g", weight), 4)
    with (tmp_path / "w").open("ab") as file:
        file.write(SECRET)
    with pytest.raises(InputError, match="bytes after the last tensor"):
        open_graph(write_graph(tmp_path / "g", weight), 4)


def test_the_hubs_cache_works(exported: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / ("c" * 40), tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(exported.iterdir())):
        shutil.copyfile(path, blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    OnnxSession(snapshot).decode(1)


@pytest.mark.parametrize("name", ["../onnx/model.onnx", "/model.onnx", "a\\b", "a/b", "", "C:x"])
def test_the_graphs_own_name(exported: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    content = json.loads((copy / "genai_config.json").read_text())
    content["model"]["decoder"]["filename"] = name
    (copy / "genai_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"model\.decoder\.filename"):
        OnnxSession(copy)
