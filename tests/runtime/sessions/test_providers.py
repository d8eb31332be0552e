"""Providers by name, and that what was asked for is what runs: on ONNX Runtime and on fakes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Outcome, assert_refused, dsconv
from small_models import write_checkpoint

from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.errors import OutputError, ProviderError, UsageError
from dsconv.runtime.doctor.graphs import float16, int4_contrib, int4_standard
from dsconv.runtime.sessions.load import load
from dsconv.runtime.sessions.onnx_graph import OpenGraph
from dsconv.runtime.sessions.onnx_provider import (
    create_session,
    import_onnxruntime,
    missing_library,
)
from dsconv.runtime.sessions.placement import (
    Placement,
    Share,
    from_partition,
    from_profile,
    with_times,
)
from dsconv.runtime.sessions.providers import (
    FAMILY,
    PROVIDERS,
    Provider,
    ProviderChoice,
    choose_provider,
    refuse_unknown,
    torch_device_name,
)
from dsconv.runtime.sessions.torch_device import BACKENDS


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("providers")
    source = open_checkpoint(str(write_checkpoint(folder / "m")))
    export_onnx(source, ExportOptions(), folder / "x")
    return folder / "x"


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("label", "name", "option"),
    [
        ("cuda", "CUDAExecutionProvider", None),
        ("cuda:1", "CUDAExecutionProvider", ("device_id", "1")),
        ("openvino", "OpenVINOExecutionProvider", ("device_type", "CPU")),
        ("openvino:NPU", "OpenVINOExecutionProvider", ("device_type", "NPU")),
        ("OpenVINOExecutionProvider", "OpenVINOExecutionProvider", ("device_type", "CPU")),
        ("openvino:AUTO:GPU,CPU", "OpenVINOExecutionProvider", ("device_type", "AUTO:GPU,CPU")),
        ("qnn", "QNNExecutionProvider", ("backend_type", "htp")),
        ("VitisAIExecutionProvider", "VitisAIExecutionProvider", None),
    ],
)
def test_short_and_long_names(label: str, name: str, option: tuple[str, str] | None) -> None:
    choice = choose_provider(label)
    assert choice.provider.name == name
    if option is not None:
        assert choice.options[option[0]] == option[1]


@pytest.mark.parametrize(
    "label",
    [
        *("abacus", "", "cpu:1", "Torch:cuda", "cudaexecutionprovider", "cuda:first"),
        *("openvino:XYZ", "openvino:cpu", "qnn:npu"),
    ],
)
def test_unknown_names_are_usage_errors(label: str) -> None:
    with pytest.raises(UsageError):
        refuse_unknown(label)


def test_torch_devices_are_no_execution_providers() -> None:
    assert torch_device_name("torch:cuda:1") == "cuda:1"
    assert torch_device_name("torch") == "cpu"
    assert torch_device_name("cuda") is None


def test_every_row_says_how_to_get_it() -> None:
    for label, provider in PROVIDERS.items():
        assert "pip install" in provider.install, label
        assert label == "cpu" or (provider.needs and provider.prepare), label


def test_a_wheel_that_replaces_onnxruntime_is_installed_in_its_place() -> None:
    for provider in PROVIDERS.values():
        replaces = provider.wheel in FAMILY and provider.wheel != "onnxruntime"
        assert provider.elsewhere or ("uninstall" in provider.install) is replaces, provider.name


# ---------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    "label",
    [*(name for name in PROVIDERS if name != "cpu"), "VitisAIExecutionProvider", "openvino:GPU"],
)
def test_a_provider_that_is_not_there_never_runs_on_the_cpu(artifact: Path, label: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ProviderError, match="has no") as caught:
        load(str(artifact), label)
    assert time.perf_counter() - start < 2
    assert choose_provider(label).provider.name in caught.value.message
    assert "install" in caught.value.hint


ABSENT = [name for name in PROVIDERS if name != "cpu"] + ["openvino:NPU"]
ABSENT_DEVICES = [f"torch:{device}" for device in BACKENDS]


@pytest.mark.parametrize("label", [*ABSENT, *ABSENT_DEVICES])
def test_the_command_says_at_once_what_is_missing(
    artifact: Path, tmp_path: Path, label: str
) -> None:
    """Seconds are the processor's: other processes may be using it too."""
    device = torch_device_name(label)
    if device and device.partition(":")[0] in dir(torch) and getattr(torch, device).is_available():
        pytest.skip(f"this machine has {label}")
    model = artifact.parent / "m" if device else artifact
    command = [sys.executable, "-m", "dsconv", "run", model, "-p", "hi", "--provider", label]
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    said = Outcome(process.returncode, *((tmp_path / name).read_text() for name in ("out", "err")))
    missing = BACKENDS[device].package if device else choose_provider(label).provider.name
    assert_refused(said, 7, missing or "torch", "install")
    assert used.ru_utime + used.ru_stime < 2


def test_fallback_of_nodes_does_not_excuse_a_missing_provider(artifact: Path) -> None:
    with pytest.raises(ProviderError):
        load(str(artifact), "cuda", allow_fallback=True)


@pytest.mark.parametrize("command", ["run", "bench", "verify"])
def test_commands_end_with_two_lines_and_code_7(artifact: Path, command: str) -> None:
    extra = {"run": ["-p", "hi"], "verify": ["--reference", artifact], "bench": ["--rounds", "1"]}
    outcome = dsconv(command, artifact, *extra[command], "--provider", "cann")
    assert_refused(outcome, 7, "CANNExecutionProvider", "onnxruntime-cann")


# ---------------------------------------------------------------- fakes


class FakeRuntime(SimpleNamespace):
    """Stands in for onnxruntime: which providers it lists, and which a session ends up with.

    says: what it prints while a session is made.
    """

    def __init__(
        self, listed: list[str], used: list[str], folder: Path, says: str = "noise of a library"
    ) -> None:
        super().__init__(__version__="1.99", __file__=str(folder / "__init__.py"), asked={})
        self.get_available_providers = lambda: listed
        self.get_ep_devices = lambda: []

        def session(model: object, options: object, **arguments: Any) -> object:
            self.asked.update(arguments)
            os.write(1, f"{says}\n".encode())
            return SimpleNamespace(get_providers=lambda: used)

        self.InferenceSession = session


class FakeOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.devices, self.given = devices, options


CUDA, CPU = PROVIDERS["cuda"].name, PROVIDERS["cpu"].name
CANN = PROVIDERS["cann"].name


def test_a_session_that_went_on_without_its_provider_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = FakeRuntime([CANN, CPU], [CPU], tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    options = FakeOptions()
    with pytest.raises(ProviderError, match="noise of a library"):
        create_session(b"", choose_provider("cann"), options)
    assert capfd.readouterr().out == ""
    assert fake.asked["enable_fallback"] == 0
    assert [name for name, _ in fake.asked["providers"]] == [CANN]
    assert options.entries["session.disable_cpu_ep_fallback"] == "1"


@pytest.mark.parametrize(("label", "name"), [("cann", CANN), ("cuda", CUDA)])
def test_the_cpu_is_listed_only_where_it_may_run_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, label: str, name: str
) -> None:
    fake = FakeRuntime([name, CPU], [name, CPU], tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    options = FakeOptions()
    create_session(b"", choose_provider(label), options, allow_fallback=True)
    assert fake.asked["providers"][-1] == CPU
    assert "session.disable_cpu_ep_fallback" not in options.entries


BUILT_IN = {
    "cann": {"precision_mode_v2": "origin", "dump_om_model": "0"},
    "cann:1": {"precision_mode_v2": "origin", "dump_om_model": "0", "device_id": "1"},
    "cuda:1": {"device_id": "1"},
    "tensorrt": {"trt_bf16_enable": "1", "trt_engine_cache_enable": "1"},
    "migraphx": {"migraphx_bf16_enable": "1"},
    "openvino": {"device_type": "CPU"},
    "openvino:NPU": {"device_type": "NPU"},
    "webgpu": {},
}


@pytest.mark.parametrize("label", BUILT_IN)
def test_options_reach_the_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, label: str
) -> None:
    choice = choose_provider(label)
    name = choice.provider.name
    fake = FakeRuntime([name, CPU], [name, CPU], tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    create_session(b"graph", choice, FakeOptions())
    (asked, given), *_ = fake.asked["providers"]
    cache = choice.provider.cache_option
    assert asked == name
    assert {key: value for key, value in given.items() if key != cache} == BUILT_IN[label]
    assert (cache in given) is (label in ("tensorrt", "migraphx"))


@pytest.mark.parametrize("label", ["qnn", "qnn:gpu"])
def test_options_reach_a_plugin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, label: str
) -> None:
    """Its device is handed over, and nothing named in a list."""
    choice = choose_provider(label)
    (tmp_path / "onnxruntime_qnn.py").write_text("def get_library_path(): return 'the library'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)  # forgotten again after the test
    monkeypatch.delitem(sys.modules, "onnxruntime_qnn")
    device = SimpleNamespace(ep_name=choice.provider.name)
    fake = FakeRuntime([CPU], [choice.provider.name, CPU], tmp_path)
    registered: list[tuple[str, str]] = []
    fake.register_execution_provider_library = lambda *call: registered.append(call)
    fake.get_ep_devices = lambda: [device] if registered else []
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    for _ in range(2):
        options = FakeOptions()
        create_session(b"graph", choice, options)
        assert options.devices == [device]
        assert options.given == choice.options
        assert options.given["backend_type"] == ("gpu" if ":" in label else "htp")
        assert fake.asked == {"enable_fallback": 0}
    assert registered == [(choice.provider.name, "the library")]


def test_artifacts_do_not_share_what_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same graph over other weights: a provider takes the two for one."""
    tensorrt = choose_provider("tensorrt")
    name = tensorrt.provider.name
    fake = FakeRuntime([name, CPU], [name, CPU], tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = []
    for weights in (b"a", b"b", b"a"):
        artifact = tmp_path / f"artifact{len(folders)}"
        artifact.mkdir()
        (artifact / "model.onnx").write_bytes(b"graph")
        (artifact / "model.safetensors").write_bytes(weights)
        create_session(artifact / "model.onnx", tensorrt, FakeOptions())
        folders.append(fake.asked["providers"][0][1]["trt_engine_cache_path"])
    assert folders[0] == folders[2] != folders[1]
    assert all(Path(folder).is_dir() for folder in folders)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be made"):
        create_session(b"graph", tensorrt, FakeOptions())


WORDS = {
    "openvino:GPU": ("Device GPU is not available", "Intel's compute"),
    "qnn:cpu": ("QNN SetupBackend failed libQnnCpu.so: cannot open shared object", "qnn:htp"),
    "cuda": ("Failed to create CUDAExecutionProvider. Require cuDNN 9", "CUDA 13"),
}


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("label", WORDS)
def test_a_provider_that_only_logs_its_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, label: str, allow: bool
) -> None:
    """Even where the session lists it, as it does plugins; leaving out nodes is another thing."""
    choice = choose_provider(label)
    said, cure = WORDS[label]
    fake = FakeRuntime([choice.provider.name], [choice.provider.name, CPU], tmp_path, f"[E: {said}")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(ProviderError, match="needs") as caught:
        create_session(b"graph", choice, FakeOptions(), allow)
    assert said.removeprefix("QNN SetupBackend failed ") in caught.value.message
    assert cure in caught.value.hint


def test_a_library_that_does_not_load_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "capi").mkdir()
    library = tmp_path / "capi" / "libonnxruntime_providers_cann.so"
    library.write_bytes(b"no library")
    fake = FakeRuntime([CANN, CPU], [CPU], tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(ProviderError, match=r"providers_cann\.so") as caught:
        create_session(b"", choose_provider("cann"), FakeOptions())
    assert "set_env.sh" in caught.value.hint
    assert fake.asked == {}
    assert missing_library(PROVIDERS["cpu"], fake) is None


def test_onnxruntime_built_for_another_numpy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text('raise ImportError("import numpy failed")')
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProviderError, match="import numpy failed") as caught:
        import_onnxruntime()
    assert caught.value.hint == 'pip install "numpy<2"'


# ---------------------------------------------------------------- placement


def event(name: str, op: str, provider: str, duration: int) -> dict[str, Any]:
    arguments = {"op_name": op, "provider": provider}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": duration, "args": arguments}


def test_placement_from_a_profile() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "dur": 999, "args": {}},
        event("a", "MatMul", CUDA, 30),
        event("a", "MatMul", CUDA, 30),  # a second run of the same node
        event("b", "Add", CUDA, 20),
        event("c", "Shape", CPU, 20),
        {"cat": "Node", "name": "a_fence_before", "dur": 5, "args": {"provider": CPU}},
    ]
    placement = from_profile(events)
    assert placement.node_share(CUDA) == pytest.approx(2 / 3)
    assert placement.time_share(CUDA) == pytest.approx(0.8)
    assert placement.elsewhere(CUDA) == {"Shape": 1}
    assert [share["nodes"] for share in placement.to_json()] == [2, 1]


def test_a_partition_knows_nodes_and_takes_times_from_the_profile() -> None:
    def subgraph(name: str, *operators: str) -> object:
        nodes = [SimpleNamespace(op_type=operator) for operator in operators]
        return SimpleNamespace(ep_name=name, get_nodes=lambda: nodes)

    partition = from_partition([subgraph(CUDA, "MatMul", "Add"), subgraph(CPU, "Gather")])
    assert partition is not None
    assert partition.time_share(CUDA) is None
    timed = with_times(partition, from_profile([event("fused", "Subgraph", CUDA, 5)]))
    assert timed.node_share(CUDA) == pytest.approx(2 / 3)
    assert timed.time_share(CUDA) == 1.0
    assert from_partition([]) is None


def test_work_left_to_the_cpu_is_refused_and_shape_arithmetic_is_not() -> None:
    def place(operators: dict[str, int], allow: bool = False) -> Placement | None:
        shares = (Share(CUDA, {"MatMul": 3}), Share(CPU, operators))
        nodes = [
            SimpleNamespace(
                ep_name=share.provider,
                get_nodes=lambda share=share: [
                    SimpleNamespace(op_type=op)
                    for op, n in share.operators.items()
                    for _ in range(n)
                ],
            )
            for share in shares
        ]
        session = SimpleNamespace(get_provider_graph_assignment_info=lambda: nodes)
        graph = OpenGraph(Path("m.onnx"), session, choose_provider("cuda"), allow, None)
        return graph.place(lambda: None)

    placed = place({"Shape": 2, "Gather": 1})
    assert placed is not None
    assert placed.node_share(CUDA) == 0.5
    with pytest.raises(ProviderError, match=r"GroupQueryAttention \(2\)"):
        place({"GroupQueryAttention": 2})
    assert place({"GroupQueryAttention": 2}, allow=True) is not None


def test_a_profiled_run_on_onnxruntime_itself(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's own provider, taken for one that shares the graph with others."""
    alias = Provider(CPU, "onnxruntime", shares_with_cpu=True)
    choice = ProviderChoice("other", alias, {})
    monkeypatch.setattr(ProviderChoice, "is_cpu", property(lambda self: False))
    monkeypatch.setattr("dsconv.runtime.sessions.onnx_graph.choose_provider", lambda label: choice)
    from dsconv.runtime.sessions.onnx import OnnxSession

    placement = OnnxSession(artifact, "other").placement
    assert placement is not None
    assert placement.node_share(CPU) == 1.0
    assert placement.time_share(CPU) == 1.0
    assert placement.shares[0].operators["GroupQueryAttention"] == 2


# ---------------------------------------------------------------- graphs of doctor


@pytest.mark.parametrize("make", [int4_contrib, int4_standard, float16])
def test_the_trial_graphs_hold_on_the_cpu(make: Any) -> None:
    import onnxruntime

    trial = make()
    options = onnxruntime.SessionOptions()
    session = create_session(trial.model, choose_provider("cpu"), options)
    found = session.run(None, {"x": trial.x})[0]
    assert trial.error_of(found) < 1e-2
    assert trial.error_of(np.roll(found, 1, axis=1)) > 0.5
