"""Config keys that the families share: sizes with limits, and keys that must not be ignored."""

from __future__ import annotations

from collections.abc import Collection

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.known_key import Use
from dsconv.errors import UnsupportedError

from .base import DecoderConfig
from .known_keys import CONFIG_KEYS
from .rope_config import read_rope, rope_remark

FULL_ATTENTION = {"full_attention", "attention"}  # the second is the older name


def refuse_unsupported(reader: ConfigReader, without: Collection[str] = ()) -> None:
    """Refuse keys whose values ask for a computation that no interpreter has.

    Args:
        without: keys that mean nothing in the family.

    Raises:
        UnsupportedError: naming file, key and value.
    """
    for key, known in CONFIG_KEYS.items():
        value = reader.data.get(key)
        if known.use is Use.REFUSED and key not in without and known.asks(value):
            raise UnsupportedError(
                f"{reader.where}: {key} = {str(value)[:80]} is not supported: {known.why}",
                f"supported: {', '.join(map(repr, known.neutral)) or 'absent'}",
            )
    _refuse_own_code(reader)
    layer_types = reader.data.get("layer_types")
    if layer_types is not None and not isinstance(layer_types, list):
        raise reader.fail("layer_types", f"{layer_types!r} is not a list")
    if layer_types is not None and set(map(str, layer_types)) - FULL_ATTENTION:
        raise UnsupportedError(
            f"{reader.where}: layer_types holds {sorted(set(map(str, layer_types)))}",
            "supported: full_attention in every layer",
        )


def config_remarks(reader: ConfigReader) -> list[str]:
    """What a person should know of the settings: readers differ about them, and none is refused."""
    remark = rope_remark(reader)
    return ([] if remark is None else [remark]) + [
        f"{reader.where}: {key} is not applied: {known.why}"
        for key, known in CONFIG_KEYS.items()
        if known.use is Use.NAMED and known.asks(reader.data.get(key))
    ]


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
