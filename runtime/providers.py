"""Execution providers by short name."""

from __future__ import annotations

from ..errors import ProviderError, UsageError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "cann": "CANNExecutionProvider",
    "musa": "MUSAExecutionProvider",
}
WHEELS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "qnn": "onnxruntime-qnn",
    "migraphx": "onnxruntime-migraphx",
    "cann": "onnxruntime-cann",
}


def refuse_unknown(provider: str) -> None:
    """Raises UsageError unless `provider` is one of the short names."""
    if provider not in PROVIDERS:
        raise UsageError(f"provider: {provider!r} is not known", f"choose {', '.join(PROVIDERS)}")


def provider_name(provider: str) -> str:
    """Short name -> ONNX Runtime's name of a provider that the installed wheel has.

    Raises:
        UsageError: no such name.
        ProviderError: the installed onnxruntime was built without it.
    """
    import onnxruntime

    refuse_unknown(provider)
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        wheel = WHEELS.get(provider, "the vendor's onnxruntime")
        raise ProviderError(
            f"provider {provider!r} is not in the installed onnxruntime",
            f"replace onnxruntime by {wheel}, or run with --provider cpu",
        )
    return name
