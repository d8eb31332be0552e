"""The architecture and settings of a GGUF file, as config.json would have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsconv.convert.families import FAMILIES
from dsconv.convert.families.rope import Llama3Scaling, Rope
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError, UnsupportedError

from .container import GgufTensor
from .keys import refuse_unsupported
from .source import COPY_DTYPES, ROPE_DIVISORS, read_floats

ARCHITECTURE, TABLE = "general.architecture", "token_embd.weight"
# Architectures whose graph in llama.cpp divides frequencies by a tensor, Llama 3.1's scaling.
READS_DIVISORS = ("llama",)
TORCH_DTYPES: Mapping[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def short_float(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _head_dim(metadata: ConfigReader, arch: str, hidden: int, heads: int) -> int:
    """Keys, values and rotary positions must agree on it."""
    default = hidden // heads or None
    head_dim = metadata.integer(f"{arch}.attention.key_length", default, high=limits.HIDDEN)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := metadata.integer(f"{arch}.{key}", head_dim)) != head_dim:
            raise UnsupportedError(
                f"{metadata.where}: {arch}.{key} = {size} is not supported",
                f"supported: the size of a head, {head_dim}",
            )
    return head_dim


def _rope_scaling(metadata: ConfigReader, arch: str) -> dict[str, Any] | None:
    """llama.cpp's rope.scaling keys; a factor without a type means linear, as it does there."""
    prefix = f"{arch}.rope.scaling"
    kind = metadata.string(f"{prefix}.type", "linear")
    factor = metadata.number(f"{prefix}.factor", metadata.number(f"{arch}.rope.scale_linear", 0.0))
    factor = short_float(factor) or 1.0  # 0 stands for none
    attention = short_float(metadata.number(f"{prefix}.attn_factor", 1.0))
    if kind != "yarn" and attention != 1.0:
        raise UnsupportedError(
            f"{metadata.where}: {prefix}.attn_factor = {attention} is not supported",
            "supported: 1, or beside a scaling of type yarn",
        )
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(
            f"{metadata.where}: {prefix}.type = {kind!r} is not supported",
            "supported: none, linear, yarn",
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        context = metadata.integer(f"{arch}.context_length")
        original = metadata.integer(f"{prefix}.original_context_length", context)
        scaling["original_max_position_embeddings"] = original
        if attention != 1.0:  # a factor on that of the paper, which replaces it in config.json
            usual = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
            scaling["attention_factor"] = attention * usual
        for name in ("beta_fast", "beta_slow"):
            if metadata.has(f"{prefix}.yarn_{name}"):
                scaling[name] = short_float(metadata.number(f"{prefix}.yarn_{name}"))
    return scaling


def _llama3_scaling(tensor: GgufTensor, plain: Rope) -> dict[str, Any] | None:
    """llama.cpp stores Llama 3.1's scaling as one divisor per frequency; find its parameters.

    The largest divisor is the factor; the other parameters are those of every published model,
    but for the original context, which is sought among the powers of two.
    """
    divisors = read_floats(tensor, 0, tensor.rows).reshape(-1)
    unscaled = plain.frequencies()
    if divisors.shape == unscaled.shape and np.array_equal(divisors, np.ones_like(divisors)):
        return None
    largest = short_float(float(divisors.max()))
    for original in (8192, *(2**power for power in range(5, 25))):
        scaling = Llama3Scaling(largest, 1.0, 4.0, original)
        if not 1.0 < largest <= limits.POSITIONS or divisors.shape != unscaled.shape:
            break
        expected = unscaled / Rope(plain.theta, plain.head_dim, scaling).frequencies()
        if np.allclose(divisors, expected, rtol=1e-4, atol=0):
            return {"rope_type": "llama3", **vars(scaling)}
    raise UnsupportedError(
        f"{tensor.path}: tensor {ROPE_DIVISORS!r} is not a scaling of Llama 3's kind",
        "convert the model's original checkpoint instead",
    )


def _scaling(
    metadata: ConfigReader, arch: str, rope: Rope, tensors: Mapping[str, GgufTensor]
) -> dict[str, Any] | None:
    scaling = _rope_scaling(metadata, arch)
    if ROPE_DIVISORS not in tensors:
        return scaling
    if scaling is not None:
        raise UnsupportedError(
            f"{metadata.where}: {ROPE_DIVISORS!r} beside {arch}.rope.scaling",
            "supported: one of them",
        )
    if arch not in READS_DIVISORS:
        raise UnsupportedError(
            f"{metadata.where}: tensor {ROPE_DIVISORS!r} is not part of {arch}",
            f"llama.cpp refuses the file too; supported in {', '.join(READS_DIVISORS)}",
        )
    return _llama3_scaling(tensors[ROPE_DIVISORS], rope)


def _per_layer(metadata: ConfigReader, key: str, default: int | None = None) -> int:
    """A number, or a list of one for each layer, in which all must be equal."""
    value = metadata.data.get(key)
    if isinstance(value, list) and value:
        if any(item != value[0] for item in value):
            raise UnsupportedError(
                f"{metadata.where}: {key} differs between layers: {str(value)[:80]}",
                "supported: the same in every layer",
            )
        return ConfigReader({key: value[0]}, metadata.where).integer(key, high=limits.INTERMEDIATE)
    return metadata.integer(key, default)


def architecture_of(metadata: ConfigReader) -> str:
    """Raises UnsupportedError: none that dsconv has a family for."""
    arch = metadata.string(ARCHITECTURE)
    if arch not in {known.model_type for known in FAMILIES}:
        raise UnsupportedError(
            f"{metadata.where}: {ARCHITECTURE} = {arch!r} is not supported",
            f"supported: {', '.join(known.model_type for known in FAMILIES)}",
        )
    return arch


def read_config(metadata: ConfigReader, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """config.json as Hugging Face would write it; `tensors` under GGUF's names.

    Raises:
        InputError: a key or the embedding is missing.
        UnsupportedError: another architecture, or a key asks for what is not implemented.
    """
    arch = architecture_of(metadata)
    family = next(known for known in FAMILIES if known.model_type == arch)
    refuse_unsupported(metadata, arch)
    if TABLE not in tensors:
        raise InputError(f"{metadata.where}: tensor {TABLE!r} is missing", "fetch the file again")
    table = tensors[TABLE]
    hidden = metadata.integer(f"{arch}.embedding_length", high=limits.HIDDEN)
    heads = _per_layer(metadata, f"{arch}.attention.head_count")
    head_dim = _head_dim(metadata, arch, hidden, heads)
    rope = Rope(metadata.number(f"{arch}.rope.freq_base", 10000.0, low=1.0 + 1e-6), head_dim)
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": _per_layer(metadata, f"{arch}.feed_forward_length"),
        "num_hidden_layers": metadata.integer(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _per_layer(metadata, f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "vocab_size": table.shape[0],
        "rms_norm_eps": short_float(metadata.number(f"{arch}.attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": metadata.integer(f"{arch}.context_length"),
        "rope_theta": short_float(rope.theta),
        "rope_scaling": _scaling(metadata, arch, rope, tensors),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": TORCH_DTYPES[COPY_DTYPES.get(table.type_name, "F16")],
    }
    if arch != "qwen2":  # there biases belong to the architecture
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    for key in ("bos_token_id", "eos_token_id"):
        if metadata.has(f"tokenizer.ggml.{key}"):
            config[key] = metadata.integer(f"tokenizer.ggml.{key}", low=0)
    return config
