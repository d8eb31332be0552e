"""What a shell offers behind an option or an argument. Nothing heavy is imported: a key waits."""

from __future__ import annotations

from collections.abc import Callable

Completer = Callable[[str], list[str]]  # what stands there so far -> what may

# `runtime/export.py` has what writes them; a test compares the two.
FORMATS = ("onnx", "native", "gguf", "compressed-tensors", "ascend")
DIALECTS = ("contrib", "std24", "std21", "std17-nbits", "std17")
PEERS = ("llama.cpp", "onnxruntime-genai", "openvino")
DTYPES = ("float32", "bfloat16")
CACHES = ("fp16", "int8", "fp32")


def one_of(names: tuple[str, ...]) -> Completer:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def formats(incomplete: str) -> list[str]:
    return one_of(FORMATS)(incomplete)


def targets(incomplete: str) -> list[str]:
    from dsconv.convert.targets.table import TARGETS

    return one_of(tuple(TARGETS))(incomplete)


def providers(incomplete: str) -> list[str]:
    from dsconv.runtime.sessions.providers import PROVIDERS, TORCH
    from dsconv.runtime.sessions.torch_device import BACKENDS

    return one_of((*PROVIDERS, *(f"{TORCH}:{kind}" for kind in BACKENDS)))(incomplete)


def recipes(incomplete: str) -> list[str]:
    """Recipes that come with dsconv; a shell completes the names of files by itself."""
    from dsconv.runtime.build.recipe import recipe_names

    return one_of(tuple(recipe_names()))(incomplete)
