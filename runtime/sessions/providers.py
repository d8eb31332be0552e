"""Execution providers of ONNX Runtime by short name: what brings each, and what it needs.

`--provider NAME[:DEVICE]`: a short name below, or ONNX Runtime's own (`…ExecutionProvider`).
`--provider torch[:DEVICE]` is no execution provider; see torch_device.py.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dsconv.convert.targets.table import TARGETS, meant_by, plain
from dsconv.errors import UsageError, choose

SUFFIX = "ExecutionProvider"
TORCH = "torch"
STOCK = "onnxruntime"
# They all own the import package `onnxruntime`: two in one environment overwrite each other.
FAMILY = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-cann",
    "onnxruntime-openvino",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-webgpu",
    "onnxruntime-directml",
    "onnxruntime-training",
)


@dataclass(frozen=True)
class Provider:
    """One row of the table.

    wheel: brings the provider; it replaces onnxruntime, or stands beside it if there is a `plugin`.
    plugin: module of a wheel with `get_library_path()`, for ONNX Runtime's plugin interface.
    needs: what no wheel brings, in words. prepare: how to get that.
    options: given at creation, beside those of the target of the same name (convert/targets).
    device_option: the one that `:DEVICE` sets. devices: its values, which may go on after a dot or
        colon (`AUTO:GPU,CPU`); none where devices have numbers.
    cache_option: names the folder for what the provider compiles, which by itself it writes into
        the working directory, or throws away; "" for none.
    elsewhere: no wheel for this machine is offered, so `prepare` says where there is one.
    shares_with_cpu: ONNX Runtime itself leaves shape arithmetic to the CPU (providers with a
        kernel per operator); the others compile whole graphs and take all or nothing.
    memory: the device under which ONNX Runtime keeps this provider's tensors; "" for the host's.
    int4, half: dialects a graph with int4 weights, or in float16, may be tried in; "" for none.
    """

    name: str
    wheel: str = ""
    plugin: str = ""
    needs: str = ""
    prepare: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    device_option: str = "device_id"
    devices: tuple[str, ...] = ()
    cache_option: str = ""
    elsewhere: bool = False
    shares_with_cpu: bool = False
    memory: str = ""
    int4: str = ""
    half: bool = True

    @property
    def library(self) -> str:
        """Stem of the shared library that holds a provider which is not linked in."""
        return f"onnxruntime_providers_{self.name.removesuffix(SUFFIX).lower()}"

    @property
    def install(self) -> str:
        """The command that brings the provider."""
        if not self.wheel:
            return "install the onnxruntime of the device's vendor"
        if self.elsewhere:
            return self.prepare
        if self.wheel in FAMILY and self.wheel != STOCK:
            return f"pip uninstall -y {STOCK} && pip install {self.wheel}"
        return f"pip install {self.wheel}"


def _qnn_options() -> dict[str, str]:
    """Where there is no Qualcomm chip the wheel emulates one, which must be named: a v75 NPU."""
    emulated = platform.machine().lower() in ("x86_64", "amd64")
    return {"soc_model": "69", "htp_arch": "75"} if emulated else {}


PROVIDERS: dict[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", STOCK, int4="contrib"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "onnxruntime-gpu",
        needs="CUDA 13 and cuDNN 9",
        prepare='pip install "onnxruntime-gpu[cuda,cudnn]", or install CUDA 13 and cuDNN 9',
        shares_with_cpu=True,
        memory="cuda",
        int4="contrib",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu",
        needs="TensorRT 10, CUDA 13 and cuDNN 9",
        prepare='pip install tensorrt "onnxruntime-gpu[cuda,cudnn]"',
        cache_option="trt_engine_cache_path",
        int4="standard",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "onnxruntime-openvino",
        needs="for GPU or NPU Intel's driver",
        prepare="install Intel's compute or NPU driver, or use openvino:CPU",
        options={"device_type": "CPU"},
        device_option="device_type",
        devices=("CPU", "GPU", "NPU", "AUTO", "HETERO", "MULTI"),
        int4="contrib",
    ),
    "qnn": Provider(
        "QNNExecutionProvider",
        "onnxruntime-qnn",
        plugin="onnxruntime_qnn",
        needs="a Qualcomm chip, or x86 for the emulator of its NPU",
        prepare="pip install --upgrade onnxruntime onnxruntime-qnn, and use qnn:htp on x86",
        options=_qnn_options(),
        device_option="backend_type",
        devices=("htp", "gpu", "cpu", "ir"),
        int4="contrib",
    ),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "onnxruntime-webgpu",
        plugin="onnxruntime_ep_webgpu",
        needs="a GPU with a Vulkan, Metal or D3D12 driver",
        prepare="install the GPU's driver (on Linux also libvulkan1)",
        shares_with_cpu=True,
        int4="contrib",
    ),
    "dml": Provider(
        "DmlExecutionProvider",
        "onnxruntime-directml",
        needs="Windows with a DirectX 12 GPU",
        prepare="pip install onnxruntime-directml on Windows",
        elsewhere=platform.system() != "Windows",
        shares_with_cpu=True,
        int4="contrib",
    ),
    "coreml": Provider(
        "CoreMLExecutionProvider",
        STOCK,
        needs="macOS: the provider is part of its onnxruntime wheel only",
        prepare="pip install onnxruntime on macOS",
        elsewhere=platform.system() != "Darwin",
        options={"ModelFormat": "MLProgram"},
        shares_with_cpu=True,
    ),
    "migraphx": Provider(
        "MIGraphXExecutionProvider",
        "onnxruntime-migraphx",
        needs="ROCm with MIGraphX (or Hygon's DTK)",
        prepare="install ROCm and its package migraphx",
        cache_option="migraphx_model_cache_dir",
        int4="contrib",
    ),
    "cann": Provider(
        "CANNExecutionProvider",
        "onnxruntime-cann",
        needs="Ascend's CANN toolkit and driver",
        prepare="install the CANN toolkit, then: source set_env.sh of its folder",
        options={"dump_om_model": "0"},  # it writes compiled graphs into the working directory
    ),
    "musa": Provider(
        "MUSAExecutionProvider",
        "onnxruntime-musa",
        plugin="onnxruntime_musa",
        needs="Moore Threads' MUSA toolkit and driver",
        prepare="install the MUSA toolkit, build the wheel from MooreThreads/onnxruntime-musa and "
        "pip install it",
        elsewhere=True,
    ),
}


@dataclass(frozen=True)
class ProviderChoice:
    """A provider that was asked for, with its options. label: what the user wrote."""

    label: str
    provider: Provider
    options: Mapping[str, str]

    @property
    def is_cpu(self) -> bool:
        return self.provider.name == PROVIDERS["cpu"].name

    @property
    def device_index(self) -> int:
        """The number of the device; 0 where devices have no numbers."""
        index = self.options.get("device_id", "0")
        return int(index) if index.isdecimal() else 0


def choose_provider(label: str) -> ProviderChoice:
    """`NAME[:DEVICE]` -> the provider and its options.

    Raises:
        UsageError: no such name.
    """
    name, _, device = label.partition(":")
    if name.endswith(SUFFIX):
        known = (short for short, provider in PROVIDERS.items() if provider.name == name)
        name = next(known, name)
        provider = PROVIDERS.get(name, Provider(name))
    elif name in PROVIDERS:
        provider = PROVIDERS[name]
    else:
        raise UsageError(
            f"provider: {label!r} is not known",
            _cure_of_name(name),
        )
    if device and provider.name == PROVIDERS["cpu"].name:
        raise UsageError(f"provider: {label!r}: the CPU has no devices", "use --provider cpu")
    if device:
        _check_device(label, provider, device)
    chosen = {provider.device_option: device} if device else {}
    target = TARGETS.get(name)
    needed = target.options if target else {}
    return ProviderChoice(label, provider, {**needed, **provider.options, **chosen})


def _cure_of_name(name: str) -> str:
    """For a word that is no provider: those of the vendor's targets, or the nearest name."""
    meant = dict.fromkeys(row.provider for row in meant_by(plain(name)) if row.provider)
    if meant:
        return f"{name}: use --provider {' or '.join(meant)}"
    others = f"a name that ends in {SUFFIX}, or torch:DEVICE"
    return f"{choose(name, PROVIDERS)}, {others}"


def _check_device(label: str, provider: Provider, device: str) -> None:
    """Providers themselves take an unknown device for their first, or leave all to the CPU."""
    if not provider.devices and not device.isdecimal():
        raise UsageError(f"provider: {label!r}: devices have numbers", "use 0 for the first")
    kind = re.split(r"[.:]", device)[0]
    if provider.devices and kind not in provider.devices:
        raise UsageError(
            f"provider: {label!r}: there is no such device",
            f"choose {', '.join(provider.devices)}",
        )


def torch_device_name(label: str) -> str | None:
    """`torch:cuda:1` -> `cuda:1`; `torch` -> `cpu`; None for an execution provider."""
    name, _, device = label.partition(":")
    return (device or "cpu") if name == TORCH else None


def refuse_unknown(label: str) -> None:
    """Raises UsageError unless `label` is a provider's name or torch with a device."""
    if torch_device_name(label) is None:
        choose_provider(label)
