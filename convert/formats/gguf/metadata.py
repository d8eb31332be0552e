"""The architecture as metadata of a GGUF file, and its tensors' names: the inverse of read.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.families.base import Decoder
from dsconv.convert.families.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from dsconv.errors import UnsupportedError

from .read import INTERLEAVED
from .read_config import READS_DIVISORS
from .source import MODULES

GGUF_MODULES = {name: gguf_name for gguf_name, name in MODULES.items()}
LAYERS = "model.layers."


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    module, _, kind = name.rpartition(".")
    if not module.startswith(LAYERS):
        return f"{GGUF_MODULES[module]}.{kind}"
    layer, _, rest = module.removeprefix(LAYERS).partition(".")
    return f"blk.{layer}.{GGUF_MODULES[rest]}.{kind}"


def is_interleaved(decoder: Decoder, name: str) -> bool:
    """Whether the rows of a tensor (Hugging Face's name) change places: llama.cpp's rope."""
    rotary = ".q_proj." in name or ".k_proj." in name
    return rotary and decoder.model_type in INTERLEAVED


def source_rows(start: int, stop: int, head_dim: int) -> NDArray[np.int64]:
    """Which rows of q or k llama.cpp wants at [start, stop): the inverse of gguf.stored_row.

    Row `2j + half` of a head is row `half * head_dim / 2 + j` of that head.
    """
    head, feature = np.divmod(np.arange(start, stop), head_dim)
    pair, half = np.divmod(feature, 2)
    return np.asarray(head * head_dim + half * (head_dim // 2) + pair, np.int64)


def rope_divisors(decoder: Decoder) -> NDArray[np.float32] | None:
    """`rope_freqs.weight` [head_dim / 2], what every frequency is divided by; None for none."""
    rope = decoder.config.rope
    if not isinstance(rope.scaling, Llama3Scaling):
        return None
    if decoder.model_type not in READS_DIVISORS:
        raise _unsupported(decoder, "rope_type llama3")
    divisors = Rope(rope.theta, rope.head_dim).frequencies() / rope.frequencies()
    return divisors.astype(np.float32)


def architecture_keys(decoder: Decoder) -> dict[str, Any]:
    """The keys of the architecture; the type of a value is the type it is written in.

    Raises:
        UnsupportedError: llama.cpp would compute something else.
    """
    config, arch = decoder.config, decoder.model_type
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope.theta,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        keys["attention.key_length"] = keys["attention.value_length"] = config.head_dim
    keys.update(_rope_scaling_keys(decoder))
    return {f"{arch}.{key}": value for key, value in keys.items()}


def _rope_scaling_keys(decoder: Decoder) -> dict[str, Any]:
    scaling = decoder.config.rope.scaling
    if isinstance(scaling, LinearScaling):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if not isinstance(scaling, YarnScaling):
        return {}
    # llama.cpp knows whole dimensions only, and ignores keys for beta_fast and beta_slow.
    if not scaling.truncate or (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
        raise _unsupported(
            decoder, "yarn with a beta_fast or beta_slow of its own, or untruncated,"
        )
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling.factor,
        "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
    }
    # It multiplies the paper's attention factor by one of the file.
    usual = 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
    if not math.isclose(scaling.attention_factor, usual, rel_tol=1e-6):
        keys["rope.scaling.attn_factor"] = scaling.attention_factor / usual
    return keys


def _unsupported(decoder: Decoder, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{what} is not supported in a GGUF file of {decoder.model_type}", "use --format onnx"
    )
