"""Every kind of input that strangers control, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .artifacts import (
    FixedSessions,
    GgufFiles,
    NativeFiles,
    OnnxGraphs,
    OnnxSessions,
    genai_configs,
)
from .checkpoint_files import SafetensorsFiles, configs, descriptions, indexes, quantizations
from .foreign_checkpoints import kinds as foreign_kinds
from .gguf_files import GgufParts, GgufTypes
from .own_files import Recipes, journals, manifests
from .subjects import Subject
from .text_files import Templates, generation_configs, tokenizer_configs, tokenizers

KINDS: Mapping[str, Callable[[Path], Subject]] = {
    "safetensors": SafetensorsFiles,
    "index": indexes,
    "config": configs,
    "quantization": quantizations,
    "ascend": descriptions,
    "tokenizer": tokenizers,
    "tokenizer-config": tokenizer_configs,
    "generation-config": generation_configs,
    "template": Templates,
    "manifest": manifests,
    "journal": journals,
    "recipe": Recipes,
    "gguf": GgufFiles,
    "gguf-types": GgufTypes,
    "gguf-parts": GgufParts,
    "native": NativeFiles,
    "onnx": OnnxGraphs,
    "onnx-session": OnnxSessions,
    "fixed-session": FixedSessions,
    "genai-config": genai_configs,
    **foreign_kinds(),
}
