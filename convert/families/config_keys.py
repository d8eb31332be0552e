"""Config keys that the families share: sizes with limits, and keys that must not be ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.known_key import is_neutral
from dsconv.errors import UnsupportedError

from .base import DecoderConfig
from .rope_config import read_rope, rope_remark

# Keys that change what the network computes, with the values that leave it as we compute it.
# They come from other families of the field; a checkpoint that sets one is not what it says it is.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "no_rope_layers": ([],),
    "alibi": (False,),
    "parallel_attn": (False,),
    "use_parallel_residual": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "scale_emb": (1, 1.0),
    "scale_depth": (),
    "dim_model_base": (),
    "clip_qkv": (),
    "num_experts": (0,),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "q_lora_rank": (),
    "kv_lora_rank": (),
    "attention_chunk_size": (),
    "is_causal": (True,),
    "encoder_layers": (0,),
    "cross_attention_layers": ([],),
    "add_cross_attention": (False,),
}


def refuse_unsupported(reader: ConfigReader, extra: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse keys whose values ask for a computation that no interpreter has.

    Raises:
        UnsupportedError: naming file, key and value.
    """
    for key, neutral in {**NEUTRAL_VALUES, **extra}.items():
        value = reader.data.get(key)
        if value is not None and not is_neutral(value, neutral):
            raise UnsupportedError(
                f"{reader.where}: {key} = {value!r} is not supported",
                f"supported: {', '.join(map(repr, neutral)) or 'absent'}",
            )
    _refuse_own_code(reader)
    layer_types = reader.data.get("layer_types")
    if layer_types is not None and not isinstance(layer_types, list):
        raise reader.fail("layer_types", f"{layer_types!r} is not a list")
    if layer_types is not None and set(map(str, layer_types)) - {"full_attention"}:
        raise UnsupportedError(
            f"{reader.where}: layer_types holds {sorted(set(map(str, layer_types)))}",
            "supported: full_attention in every layer",
        )


def config_remarks(reader: ConfigReader) -> list[str]:
    """What a person should know of the settings: readers differ about them, and none is refused."""
    remark = rope_remark(reader)
    return [] if remark is None else [remark]


def _refuse_own_code(reader: ConfigReader) -> None:
    """A model that brings its own Python may compute anything under a known architecture's name
    (some embedding models let Qwen2 look into the future). That code is never run."""
    auto_map = reader.child("auto_map")
    own = [key for key in auto_map.data if key.startswith("AutoModel")] if auto_map else []
    if own:
        raise UnsupportedError(
            f"{reader.where}: auto_map names code of its own for {own[0]}, which dsconv never runs",
            "if the model is the plain architecture, remove auto_map from config.json",
        )


def read_decoder_config(
    reader: ConfigReader,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> DecoderConfig:
    """Read the sizes common to all decoders; the switches come from the family."""
    hidden = reader.integer("hidden_size", high=limits.HIDDEN)
    heads = reader.integer("num_attention_heads", high=limits.HIDDEN)
    kv_heads = reader.integer("num_key_value_heads", heads, high=heads)
    if heads % kv_heads:
        raise reader.fail("num_key_value_heads", f"{kv_heads} does not divide {heads} heads")
    if not reader.has("head_dim") and hidden % heads:
        raise reader.fail("num_attention_heads", f"{heads} does not divide hidden_size {hidden}")
    head_dim = reader.integer("head_dim", hidden // heads, high=limits.HIDDEN)
    if head_dim % 2:
        raise reader.fail("head_dim", f"{head_dim} is odd; rotary positions need pairs")
    positions = reader.integer("max_position_embeddings", high=limits.POSITIONS)
    return DecoderConfig(
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", high=limits.INTERMEDIATE),
        num_hidden_layers=reader.integer("num_hidden_layers", high=limits.LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=reader.integer("vocab_size", high=limits.VOCABULARY),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6, high=1.0),
        max_position_embeddings=positions,
        rope=read_rope(reader, head_dim, positions),
        tie_word_embeddings=reader.boolean("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
    )
