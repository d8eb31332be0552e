"""Real execution providers other than the CPU's, each in its own environment.

    python scripts/provider_environment.py openvino test

The reference's scores come from this environment (torch), the artifact's from the provider's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import assert_refused
from logits import mean_divergence, random_tokens
from onnx import TensorProto, helper, numpy_helper
from outputs import quantized
from places import ROOT
from reference_models import tiny_checkpoint
from wheels import dsconv_in, python_in

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.onnx.export import export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.convert.targets.choice import choose_options
from dsconv.convert.targets.lint import lint
from dsconv.convert.targets.table import TARGETS
from dsconv.runtime.sessions.onnx import OnnxSession
from dsconv.runtime.sessions.torch_reference import TorchSession

pytestmark = pytest.mark.provider

SCORE = """
import json, sys
import numpy as np
from dsconv.runtime.sessions.load import load
path, provider, tokens, output = sys.argv[1:]
loaded = load(path, provider, threads=1, allow_fallback=False)
tokens = json.loads(tokens)
scores = loaded.session.score(tokens[:-4])
steps = [loaded.session.decode(token).copy() for token in tokens[-4:]]
np.save(output, np.concatenate([scores, np.stack(steps)]))
print(json.dumps({"share": loaded.nodes_on_provider, "nodes": loaded.placement.to_json()}))
"""
TOKENS = random_tokens(60, 160)
WORKING = ("openvino", "qnn")


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("providers")
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    quantized(tiny_checkpoint(folder / "m", request.param, **sizes), folder / "q", bits=4)
    return folder / "q"


def exported(source: Checkpoint, target: str, output: Path) -> Path:
    export_onnx(source, choose_options(TARGETS[target], source, context_length=96), output)
    return output


def scores_on(provider: str, artifact: Path, output: Path) -> tuple[np.ndarray, dict[str, Any]]:
    arguments = ("-c", SCORE, artifact, provider, json.dumps(TOKENS), output)
    outcome = python_in(provider, *arguments)
    assert outcome.code == 0, outcome.err
    return np.load(output), outcome.json


@pytest.mark.parametrize(("name", "limit"), [("openvino", 1.2), ("qnn", 2.0)])
def test_an_export_runs_on_the_provider_alone_and_is_the_same_model(
    name: str, limit: float, checkpoint: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(str(checkpoint))
    found, placed = scores_on(name, exported(source, name, tmp_path / "x"), tmp_path / "scores.npy")
    assert placed["share"] == 1.0
    assert sum(share["operators"].get("MatMulNBits", 0) for share in placed["nodes"]) == 15
    expected = TorchSession(source).score(TOKENS)
    on_cpu = OnnxSession(exported(source, "cpu", tmp_path / "cpu"), threads=1).score(TOKENS)
    # The floor is the rounding of activations, which a tiny random model is sensitive to.
    cpu = mean_divergence(expected, on_cpu)
    assert mean_divergence(expected, found) <= max(limit * cpu, 2e-3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the CPU: with operators that other providers lack."""
    folder = tmp_path_factory.mktemp("artifact")
    source = open_checkpoint(str(tiny_checkpoint(folder / "m", "llama")))
    return exported(source, "cpu", folder / "x")


def test_what_openvino_does_not_take_is_refused_or_reported(artifact: Path) -> None:
    arguments = ("run", artifact, "-p", "t7", "--max-tokens", 4, "--json", "--provider", "openvino")
    assert_refused(dsconv_in("openvino", *arguments), 7, "--allow-fallback")
    allowed = dsconv_in("openvino", *arguments, "--allow-fallback")
    assert allowed.code == 0, allowed.err
    placement = {share["provider"]: share for share in allowed.json["placement"]}
    left = placement["CPUExecutionProvider"]
    assert left["operators"]["GroupQueryAttention"] == 2
    assert 0 < left["node_share"] < 1
    assert sum(share["time_share"] for share in placement.values()) == pytest.approx(1)


# ---------------------------------------------------------------- what is not there


FOREIGN = [
    ("openvino", "openvino:GPU", "Device GPU is not available"),
    ("openvino", "openvino:NPU", "Device NPU is not available"),
    ("openvino", "qnn", "QNNExecutionProvider"),
    ("qnn", "qnn:gpu", "QNN_BACKEND_ERROR"),
    ("qnn", "qnn:cpu", "libQnnCpu.so"),
    ("cuda", "cuda", ".so"),
    ("cuda", "tensorrt", ".so"),
    ("cann", "cann", "libascendcl.so"),
]


@pytest.mark.parametrize(("name", "provider", "words"), FOREIGN)
def test_a_wheel_without_its_driver_fails_at_once(
    name: str, provider: str, words: str, artifact: Path
) -> None:
    script = (
        "import resource, subprocess, sys; "
        "code = subprocess.call([sys.executable, '-m', 'dsconv', *sys.argv[1:]]); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_utime + used.ru_stime); sys.exit(code)"
    )
    outcome = python_in(name, "-c", script, "run", artifact, "-p", "t7", "--provider", provider)
    seconds = float(outcome.out)  # of the processor: others may be using it too
    assert seconds < 2
    assert outcome.code == 7, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 2, outcome.err
    assert words in lines[0]
    print(f"{provider}: {seconds:.2f} s of the processor")


@pytest.mark.parametrize("name", ["openvino", "qnn", "cuda", "cann"])
def test_doctor_says_what_works(name: str) -> None:
    outcome = dsconv_in(name, "doctor", name, "--json")
    assert outcome.code == 0, outcome.err
    (target,) = outcome.json["targets"]
    if name in WORKING:
        assert target["state"] == "works"
        assert all(graph["error"] < 2e-2 for graph in target["graphs"].values())
    else:
        assert target["state"] == "broken"
        assert target["cure"]


@pytest.mark.parametrize("name", WORKING)
def test_the_code_is_of_this_checkout(name: str) -> None:
    """Environments are shared between checkouts."""
    outcome = python_in(name, "-c", "import dsconv; print(dsconv.__file__)")
    assert Path(outcome.out.strip()).resolve().parent == ROOT


# ---------------------------------------------------------------- the plugin interface


PLUGIN = """
import json, sys
import onnxruntime
calls = []
def record(owner, name):
    real = getattr(owner, name)
    def call(*arguments, **keywords):
        calls.append([name, sorted(keywords), [str(a) for a in arguments]])
        return real(*arguments, **keywords)
    setattr(owner, name, call)
record(onnxruntime, "register_execution_provider_library")
record(onnxruntime.SessionOptions, "add_provider_for_devices")
record(onnxruntime, "InferenceSession")
listed = onnxruntime.get_available_providers()
from dsconv.runtime.sessions.load import load
sessions = [load(sys.argv[1], "qnn").session for _ in range(2)]
print(json.dumps({"listed": listed, "calls": calls}))
"""


def test_qnn_comes_through_the_plugin_interface(artifact: Path, tmp_path: Path) -> None:
    """Registered once in a process; its device handed over, never its name in a list."""
    source = open_checkpoint(str(tiny_checkpoint(tmp_path / "m", "llama")))
    outcome = python_in("qnn", "-c", PLUGIN, exported(source, "qnn", tmp_path / "x"))
    assert outcome.code == 0, outcome.err
    assert "QNNExecutionProvider" not in outcome.json["listed"]
    calls = outcome.json["calls"]
    names = [name for name, _, _ in calls]
    assert names.count("register_execution_provider_library") == 1
    assert names.count("add_provider_for_devices") == names.count("InferenceSession") == 4
    for name, keywords, arguments in calls:
        assert name != "InferenceSession" or keywords == ["enable_fallback"]
        assert name != "add_provider_for_devices" or "'htp_arch': '75'" in arguments[-1]


# ---------------------------------------------------------------- faults that lint is to find


RUN = """
import sys
import numpy as np
import onnxruntime
from dsconv.runtime.sessions.onnx_provider import create_session
from dsconv.runtime.sessions.providers import choose_provider
model, provider, inputs, output = sys.argv[1:]
options = onnxruntime.SessionOptions()
session = create_session(open(model, "rb").read(), choose_provider(provider), options)
np.save(output, session.run(None, dict(np.load(inputs)))[0])
"""


def error_on(provider: str, model: Path, expected: np.ndarray, **inputs: np.ndarray) -> float:
    """Largest difference from NumPy, as a share of the largest value."""
    np.savez(model.with_suffix(".npz"), **inputs)
    output = model.with_suffix(".npy")
    arguments = (model, provider, model.with_suffix(".npz"), output)
    outcome = python_in(provider, "-c", RUN, *arguments)
    assert outcome.code == 0, outcome.err
    return float(np.abs(np.load(output) - expected).max() / np.abs(expected).max())


def write(path: Path, nodes: list[Any], tensors: list[Any], x: Any, y: Any) -> Path:
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def rules(path: Path, target: str) -> set[str]:
    return {finding.rule for finding in lint(path, TARGETS[target]).findings}


@pytest.mark.parametrize("blocked", [True, False])
def test_openvinos_wrong_rows_of_a_blocked_table(blocked: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-8, 8, (16, 64)).astype(np.int8)
    scales = random.uniform(0.5, 1.5, (16, 2) if blocked else 16).astype(np.float32)
    how = {"axis": 1, "block_size": 32} if blocked else {"axis": 0}
    path = write(
        tmp_path / "m.onnx",
        [
            helper.make_node("DequantizeLinear", ["codes", "scales"], ["table"], "dq", **how),
            helper.make_node("Gather", ["table", "rows"], ["y"], "lookup", axis=0),
        ],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
        helper.make_tensor_value_info("rows", TensorProto.INT64, [5]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 64]),
    )
    table = codes * (np.repeat(scales, 32, axis=1) if blocked else scales[:, None])
    rows = np.array([3, 0, 15, 7, 8])
    error = error_on("openvino", path, table[rows], rows=rows)
    assert rules(path, "openvino") == ({"blocked-gather"} if blocked else set())
    assert error > 0.1 if blocked else error < 1e-3


@pytest.mark.parametrize("shape", [(1, 64, 32), (1, 16, 4, 32)])
def test_qnns_wrong_norm_over_four_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Large values too: the squares of the first are beyond float16."""
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "gain"], ["y"], "norm", axis=-1)
    random = np.random.default_rng(0)
    gain = random.uniform(0.5, 1.5, shape[-1]).astype(np.float32)
    path = write(
        tmp_path / "m.onnx",
        [node],
        [numpy_helper.from_array(gain, "gain")],
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
    )
    x = random.standard_normal(shape).astype(np.float32)
    x[0, 0] *= 1000
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True)) * gain
    error = error_on("qnn", path, expected, x=x)
    assert rules(path, "qnn") == ({"rank"} if len(shape) > 3 else set())
    assert error > 0.1 if len(shape) > 3 else error < 1e-2


@pytest.mark.parametrize("zero_points", [False, True])
def test_qnns_wrong_int4_without_zero_points(zero_points: bool, tmp_path: Path) -> None:
    """Activations of 16 bits, weights of 4 with a scale per output."""
    random = np.random.default_rng(0)
    codes = random.integers(-7, 8, (64, 32))
    scales = random.uniform(0.01, 0.03, 32).astype(np.float32)

    def int4(name: str, values: np.ndarray) -> Any:
        return helper.make_tensor(name, TensorProto.INT4, values.shape, values.ravel().tolist())

    tensors = [int4("codes", codes), numpy_helper.from_array(scales, "scales")]
    for name, step in (("x", 2**-13), ("y", 2**-12)):
        tensors.append(numpy_helper.from_array(np.float32(step), f"{name}_step"))
        tensors.append(numpy_helper.from_array(np.uint16(2**15), f"{name}_zero"))
    inputs = ["codes", "scales"]
    if zero_points:
        tensors.append(int4("zeros", np.zeros(32, np.int64)))
        inputs.append("zeros")
    node = helper.make_node
    path = write(
        tmp_path / "m.onnx",
        [
            node("QuantizeLinear", ["x", "x_step", "x_zero"], ["x_codes"]),
            node("DequantizeLinear", ["x_codes", "x_step", "x_zero"], ["x_rounded"]),
            node("DequantizeLinear", inputs, ["weights"], "dq", axis=1),
            node("MatMul", ["x_rounded", "weights"], ["product"]),
            node("QuantizeLinear", ["product", "y_step", "y_zero"], ["y_codes"]),
            node("DequantizeLinear", ["y_codes", "y_step", "y_zero"], ["y"]),
        ],
        tensors,
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 64]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 32]),
    )
    x = random.uniform(-3, 3, (1, 4, 64)).astype(np.float32)
    error = error_on("qnn", path, x @ (codes * scales), x=x)
    assert rules(path, "qnn") == (set() if zero_points else {"zero-point"})
    assert error < 1e-2 if zero_points else error > 0.5
