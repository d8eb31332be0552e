"""`dsconv lint` on small graphs made by hand: what a target must refuse, and what it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import assert_refused, call_main
from onnx import TensorProto, helper, numpy_helper

from dsconv.convert.targets.lint import lint
from dsconv.convert.targets.table import TARGETS
from dsconv.errors import InputError, UnsupportedError, UsageError

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
Nodes = list[Any]


def write(
    path: Path,
    nodes: Nodes,
    initializers: list[Any],
    *,
    opset: int = 17,
    shape: tuple[Any, ...] = (2, 4),
    element: int = FLOAT,
    external: bool = False,
) -> Path:
    """A graph from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, None)],
        initializers,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.save(model, str(path), save_as_external_data=external, size_threshold=0)
    return path


def array(name: str, values: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def int4(name: str, shape: tuple[int, ...], value: int = 0) -> Any:
    return helper.make_tensor(name, TensorProto.INT4, shape, [value] * int(np.prod(shape)))


def rules(path: Path, target: str) -> list[tuple[str, str]]:
    """(rule, node) of every finding."""
    found = lint(path, TARGETS[target]).findings
    assert all(f.message and f.fix for f in found)
    return [(f.rule, f.node) for f in found]


def dequantize(zero: bool, **attributes: int) -> Any:
    inputs = ["codes", "scales", *(["zeros"] if zero else [])]
    return helper.make_node("DequantizeLinear", inputs, ["w"], "dq", **attributes)


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"], "product")


def per_row(path: Path, zero: bool, value: int = 0) -> Path:
    """int4 weights with a scale per output."""
    tensors = [int4("codes", (4, 4), 1), array("scales", np.ones(4))]
    if zero:
        tensors.append(int4("zeros", (4,), value))
    return write(path, [dequantize(zero, axis=1), PRODUCT], tensors, opset=21)


def test_int4_without_a_zero_point_is_found_for_qnn(tmp_path: Path) -> None:
    assert ("zero-point", "dq") in rules(per_row(tmp_path / "a.onnx", False), "qnn")
    assert ("zero-point", "dq") not in rules(per_row(tmp_path / "b.onnx", True), "qnn")
    assert rules(tmp_path / "a.onnx", "cpu") == []


@pytest.mark.parametrize("external", [False, True])
def test_a_zero_point_that_is_not_zero_is_found_for_tensorrt(
    tmp_path: Path, external: bool
) -> None:
    for name, value, wanted in (("zero", 0, []), ("other", 3, [("zero-point", "dq")])):
        tensors = [
            array("codes", np.ones((4, 4)), np.int8),
            array("scales", np.ones(4)),
            array("zeros", np.full(4, value), np.int8),
        ]
        nodes = [dequantize(True, axis=1), PRODUCT]
        path = write(tmp_path / f"{name}.onnx", nodes, tensors, external=external)
        assert rules(path, "tensorrt") == wanted


def test_a_blocked_table_is_found_for_openvino(tmp_path: Path) -> None:
    gather = helper.make_node("Gather", ["w", "rows"], ["t"], "lookup", axis=0)
    end = helper.make_node("Add", ["x", "t"], ["y"], "end")
    tensors = [
        array("codes", np.ones((8, 4)), np.int8),
        array("scales", np.ones((8, 2))),
        array("rows", [1, 5], np.int64),
    ]
    nodes = [dequantize(False, axis=1, block_size=2), gather, end]
    blocked = write(tmp_path / "blocked.onnx", nodes, tensors, opset=21)
    assert rules(blocked, "openvino") == [("blocked-gather", "lookup")]
    assert rules(blocked, "openvino-npu") == [("blocked-gather", "lookup"), ("group-size", "dq")]
    tensors[1] = array("scales", np.ones(8))
    per_row_nodes = [dequantize(False, axis=0), gather, end]
    assert rules(write(tmp_path / "rows.onnx", per_row_nodes, tensors), "openvino") == []


def test_weights_alone_are_not_dequantized_on_the_hexagon(tmp_path: Path) -> None:
    assert ("weight-only-dequantize", "dq") in rules(per_row(tmp_path / "a.onnx", True), "qnn")
    tensors = [
        array("codes", np.ones((4, 4)), np.int8),
        array("scales", np.ones(4)),
        array("zeros", np.zeros(4), np.int8),
        array("s", 0.1),
        array("z", 3, np.uint16),
    ]
    nodes = [
        dequantize(True, axis=1),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xq"], "activations"),
        helper.make_node("MatMul", ["xq", "w"], ["y"], "product"),
    ]
    assert rules(write(tmp_path / "b.onnx", nodes, tensors, opset=21), "qnn") == []


def test_open_dimensions_are_found_where_shapes_are_fixed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    path = write(tmp_path / "a.onnx", nodes, [], shape=("batch", 4))
    for name, target in TARGETS.items():
        if target.rules is not None:
            wanted = [("open-dimension", "x")] if target.rules.fixed_shapes else []
            assert rules(path, name) == wanted, name


@pytest.mark.parametrize(
    ("target", "operator", "domain", "wanted"),
    [
        ("openvino", "GroupQueryAttention", "com.microsoft", "operator"),
        ("openvino", "Attention", "", "operator"),
        ("qnn", "GroupQueryAttention", "com.microsoft", "operator"),
        ("cann", "MatMulNBits", "com.microsoft", "domain"),
        ("cann", "LayerNormalization", "", "operator"),
        ("musa", "Sin", "", "operator"),
        ("musa", "LessOrEqual", "", "operator"),
        ("musa", "MatMulNBits", "com.microsoft", "operator"),
        ("migraphx", "QMoE", "com.microsoft", "operator"),
        ("webgpu", "FusedMatMul", "com.microsoft", "operator"),
        ("tensorrt", "GroupQueryAttention", "com.microsoft", "domain"),
        ("openvino", "Sin", "", None),
        ("cann", "Sin", "", None),
        ("musa", "Sigmoid", "", None),
        ("webgpu", "GroupQueryAttention", "com.microsoft", None),
    ],
)
def test_operators(
    target: str, operator: str, domain: str, wanted: str | None, tmp_path: Path
) -> None:
    node = helper.make_node(operator, ["x"], ["y"], "it", domain=domain)
    path = write(tmp_path / "a.onnx", [node], [])
    assert rules(path, target) == ([] if wanted is None else [(wanted, "it")])


def test_what_is_computed_when_the_graph_is_loaded_is_left_alone(tmp_path: Path) -> None:
    """ONNX Runtime folds it before a provider sees the graph."""
    nodes = [
        helper.make_node("Sin", ["angles"], ["w"], "folded"),
        helper.make_node("Mul", ["x", "w"], ["y"], "live"),
    ]
    path = write(tmp_path / "a.onnx", nodes, [array("angles", np.ones(4))])
    assert rules(path, "musa") == []


def test_nodes_inside_a_branch_are_looked_at(tmp_path: Path) -> None:
    branches = []
    for name in ("one", "two"):
        inner = helper.make_node("Sin" if name == "two" else "Neg", ["x"], [name], f"in_{name}")
        value = helper.make_tensor_value_info(name, FLOAT, (2, 4))
        branches.append(helper.make_graph([inner], name, [], [value]))
    chosen = helper.make_node(
        "If", ["flag"], ["y"], "choice", then_branch=branches[0], else_branch=branches[1]
    )
    path = write(tmp_path / "a.onnx", [chosen], [array("flag", True, np.bool_)])
    assert ("operator", "in_two") in rules(path, "musa")


def test_opsets(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    path = write(tmp_path / "a.onnx", nodes, [], opset=21)
    assert rules(path, "cann") == [("opset", "")]
    assert rules(path, "musa") == [("opset", "")]
    assert rules(path, "tensorrt") == []


def test_types(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"], "sum")]
    path = write(tmp_path / "a.onnx", nodes, [], element=BFLOAT16)
    for target in ("cann", "openvino", "qnn", "webgpu"):
        assert rules(path, target) == [("type", "sum")], target
    assert rules(path, "musa") == []
    product = [helper.make_node("MatMul", ["x", "x"], ["y"], "product")]
    square = write(tmp_path / "b.onnx", product, [], element=BFLOAT16, shape=(4, 4))
    assert rules(square, "cpu") == [("type", "product")]


@pytest.mark.parametrize(("element", "wanted"), [(FLOAT, [("type", "gqa")]), (FLOAT16, [])])
def test_cuda_has_its_attention_in_half_precision(
    element: int, wanted: list[Any], tmp_path: Path
) -> None:
    inputs = ["x", "", "", "x", "x", "lengths", "total"]
    node = helper.make_node(
        "GroupQueryAttention", inputs, ["y"], "gqa", domain="com.microsoft", num_heads=1
    )
    tensors = [array("lengths", [1], np.int32), array("total", 2, np.int32)]
    path = write(tmp_path / "a.onnx", [node], tensors, element=element)
    assert rules(path, "cuda") == wanted


def test_blocks_of_matmulnbits(tmp_path: Path) -> None:
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "n", domain="com.microsoft", K=256, block_size=128
    )
    tensors = [array("w", np.ones((4, 2, 64)), np.uint8), array("s", np.ones(8))]
    path = write(tmp_path / "a.onnx", [node], tensors)
    assert rules(path, "qnn") == [("group-size", "n"), ("rank", "n")]
    assert rules(path, "openvino-npu") == [("group-size", "n")]
    assert rules(path, "openvino") == []
    write(path, [node], tensors, shape=(1, 2, 4))
    assert rules(path, "qnn") == [("group-size", "n")]


@pytest.mark.parametrize(("shape", "wanted"), [((1, 6, 4), []), ((1, 2, 3, 4), [("rank", "norm")])])
def test_a_norm_over_four_axes_is_found_for_qnn(
    shape: tuple[int, ...], wanted: list[Any], tmp_path: Path
) -> None:
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "gain"], ["y"], "norm", axis=-1)
    path = write(tmp_path / "a.onnx", [node], [array("gain", np.ones(4))], shape=shape)
    assert rules(path, "qnn") == wanted
    assert rules(path, "openvino") == []


def test_a_computed_shape_is_found_for_migraphx(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape"),
        helper.make_node("Expand", ["x", "s"], ["y"], "expand"),
    ]
    assert rules(write(tmp_path / "a.onnx", nodes, []), "migraphx") == [
        ("computed-shape", "expand")
    ]


def test_two_gigabytes_are_too_much_for_cann(tmp_path: Path) -> None:
    """The bytes are only declared: no such file is written."""
    tensor = TensorProto(name="w", data_type=FLOAT16, dims=(4, 2**28))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(2**31))):
        tensor.external_data.add(key=key, value=value)
    path = write(tmp_path / "a.onnx", [PRODUCT], [tensor], element=FLOAT16)
    assert rules(path, "cann") == [("size", "")]
    assert rules(path, "cpu") == []


# ---------------------------------------------------------------- files and the command line


def test_every_graph_of_a_folder_is_checked(tmp_path: Path) -> None:
    sine = [helper.make_node("Sin", ["x"], ["y"], "sine")]
    write(tmp_path / "b.onnx", sine, [])
    write(tmp_path / "model.onnx", [helper.make_node("Neg", ["x"], ["y"], "n")], [])
    result = lint(tmp_path, TARGETS["musa"])
    assert result.files == ("model.onnx", "b.onnx")
    assert [(f.file, f.node) for f in result.findings] == [("b.onnx", "sine")]


@pytest.mark.parametrize("content", [b"", b"not a graph at all", None])
def test_what_is_no_graph_is_bad_input(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError):
        lint(tmp_path, TARGETS["cpu"])


def test_a_target_without_graphs_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="torch:npu takes no ONNX graph"):
        lint(tmp_path, TARGETS["torch:npu"])


def test_findings_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = per_row(tmp_path / "a.onnx", False)
    as_json = call_main(monkeypatch, capsys, "lint", path, "--target", "qnn", "--json")
    assert as_json.code == 1
    findings = as_json.json["findings"]
    assert {f["node"] for f in findings} == {"dq"}
    assert set(findings[0]) == {"file", "rule", "node", "operator", "message", "fix"}
    assert not as_json.json["passed"]
    shown = call_main(monkeypatch, capsys, "lint", path, "--target", "qnn")
    assert shown.code == 1
    assert "dq" in shown.out
    assert "2 findings for target qnn" in shown.err
    clean = call_main(monkeypatch, capsys, "lint", path, "--target", "cpu")
    assert (clean.code, clean.out) == (0, "")
    assert_refused(call_main(monkeypatch, capsys, "lint", path, "--target", "x"), 2, "not known")


def test_the_table_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = call_main(monkeypatch, capsys, "targets", "--json").json["targets"]
    assert [row["name"] for row in rows] == list(TARGETS)
    assert {row["evidence"] for row in rows} <= {"measured", "read", "guessed"}
    assert "Ascend" in call_main(monkeypatch, capsys, "targets").out


def test_the_table_is_consistent() -> None:
    from dsconv.convert.targets.lint_rules import CHECKS
    from dsconv.convert.targets.table import find_target

    for name, target in TARGETS.items():
        assert find_target(name) is target
        assert ("onnx" in target.artifacts) == (target.recipe is not None)
        assert (target.recipe is None) == (target.rules is None)
        assert all(note.source and note.evidence for note in target.notes)
        if target.rules is not None and target.recipe is not None:
            assert set(target.rules.checks) <= set(CHECKS)
            assert target.rules.fixed_shapes == (target.recipe.prefill_length is not None)
    with pytest.raises(UsageError, match="'abacus' is not known"):
        find_target("abacus")
