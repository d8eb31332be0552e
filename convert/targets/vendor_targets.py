"""Targets beyond execution providers: devices of torch, and vendors with a stack of their own.

For them export writes what their own software reads, where we know what that is.
"""

from __future__ import annotations

from .target import Evidence, Note, Target

CHECKPOINT = ("compressed-tensors",)
# What people call a device of torch beside its name.
WORDS = {
    "cuda": ("nvidia", "gpu", "rocm", "hygon", "dcu"),
    "npu": ("ascend", "huawei", "atlas", "npu", "torch-npu"),
    "musa": ("moore-threads", "moorethreads", "mthreads", "gpu"),
    "xpu": ("intel", "gpu", "intel-gpu", "xpu", "arc"),
    "supa": ("birentech", "gpu"),
}


def _torch(
    device: str,
    hardware: str,
    evidence: Evidence,
    wheel: str,
    *notes: Note,
    artifacts: tuple[str, ...] = CHECKPOINT,
) -> Target:
    return Target(
        f"torch:{device}",
        hardware,
        artifacts,
        evidence,
        provider=f"torch:{device}",
        wheel=wheel,
        notes=notes,
        words=WORDS[device],
    )


def _vendor(name: str, hardware: str, artifacts: tuple[str, ...], *notes: Note) -> Target:
    sure: Evidence = "read" if all(note.evidence == "read" for note in notes) else "guessed"
    return Target(name, hardware, artifacts, sure, notes=notes)


TORCH_TARGETS = (
    _torch(
        "cuda",
        "NVIDIA; also AMD, Hygon, MetaX and Iluvatar, whose builds of torch answer to cuda",
        "read",
        "torch, or the vendor's",
    ),
    _torch(
        "npu",
        "Huawei Ascend",
        "read",
        "torch-npu",
        Note(
            "vllm-ascend reads compressed-tensors: int8 with int8 activations, and int4 groups",
            "read",
            "vllm-ascend, docs and compressed_tensors_config.py",
        ),
        Note(
            "vllm-ascend, SGLang and MindIE read AscendV1: int8 with int8 activations",
            "read",
            "vllm-ascend, modelslim_config.py; msModelSlim, ascendv1.py",
        ),
        Note(
            "without CANN, import torch fails unless TORCH_DEVICE_BACKEND_AUTOLOAD=0",
            "measured",
            "torch-npu 2.13.0",
        ),
        artifacts=(*CHECKPOINT, "ascend"),
    ),
    _torch("musa", "Moore Threads GPU", "read", "torch_musa, from the vendor"),
    _torch("xpu", "Intel GPU", "read", "torch, its xpu build"),
    _torch(
        "supa",
        "Biren GPU",
        "guessed",
        "torch-supa, from the vendor",
        Note("which quantized checkpoints it loads", "guessed", "nothing public"),
    ),
)
VENDOR_TARGETS = (
    _vendor(
        "metax",
        "MetaX GPU",
        CHECKPOINT,
        Note(
            "its vLLM plugin reads AWQ, GPTQ and compressed-tensors",
            "read",
            "MetaX-MACA/vLLM-metax, platform.py",
        ),
        Note(
            "its fork of ONNX Runtime takes int8 with QuantizeLinear; unproved for language models",
            "read",
            "MetaX-MACA/Onnxruntime",
        ),
    ),
    _vendor(
        "iluvatar",
        "Iluvatar GPU",
        CHECKPOINT,
        Note("its vLLM plugin exists; which quantizations it reads", "guessed", "not seen"),
        Note("IxRT reads ONNX graphs", "read", "Deep-Spark/iluvatar-corex-ixrt"),
    ),
    _vendor(
        "biren",
        "Biren GPU",
        CHECKPOINT,
        Note("a vLLM image of the vendor reads Hugging Face folders", "guessed", "not public"),
    ),
    _vendor(
        "cerebras",
        "Cerebras WSE",
        (),
        Note(
            "models run on the vendor's cluster, compiled from PyTorch; none is loaded from here",
            "read",
            "cerebras-pytorch",
        ),
    ),
    _vendor("groq", "Groq LPU", (), Note("reached by its API only", "read", "Groq's manual")),
    _vendor(
        "d-matrix",
        "d-Matrix Corsair",
        (),
        Note("dmx-compressor starts from a Hugging Face model in PyTorch", "guessed", "its wheel"),
    ),
    _vendor("etched", "Etched Sohu", (), Note("no public software", "guessed", "nothing public")),
)
