"""genai_config.json: what onnxruntime-genai needs to load an exported folder."""

from __future__ import annotations

from typing import Any

from dsconv.convert.checkpoint.checkpoint import (
    CONFIG,
    Checkpoint,
    eos_token_ids,
    generation_config,
)
from dsconv.convert.families.base import DecoderConfig
from dsconv.convert.files.json_file import ConfigReader

from .dialects.dialect import Dialect, GraphOptions
from .genai_search import search_settings

# Targets that onnxruntime-genai runs on a provider of the same name; else it takes the CPU's.
PROVIDERS = ("cuda", "webgpu")


def genai_config(
    checkpoint: Checkpoint,
    dialect: type[Dialect],
    filename: str,
    options: GraphOptions,
    target: str = "cpu",
) -> dict[str, Any]:
    """The content of genai_config.json for the graph `filename`.

    Products that ONNX Runtime itself fuses from standard operators take their accuracy level from
    the session, contrib nodes from their attribute.
    """
    generation = generation_config(checkpoint.side_files)
    eos = list(eos_token_ids(checkpoint))
    bos = generation.token_ids("bos_token_id") or ConfigReader(checkpoint.config, CONFIG).token_ids(
        "bos_token_id"
    )
    session_options = {
        "log_id": "dsconv",
        "provider_options": [{target: {}}] if target in PROVIDERS else [],
        "session.qdq_matmulnbits_accuracy_level": str(options.accuracy_level),
    }
    model: dict[str, Any] = {
        "type": checkpoint.decoder.model_type,
        "vocab_size": checkpoint.decoder.config.vocab_size,
        "context_length": options.context_length,
        "decoder": {
            "filename": filename,
            "session_options": session_options,
            **_network(checkpoint.decoder.config, dialect),
        },
    }
    if bos:
        model["bos_token_id"] = bos[0]
    if eos:
        model["eos_token_id"] = eos
        model["pad_token_id"] = eos[0]
    search, _ = search_settings(generation_config(checkpoint.side_files, checkpoint.config))
    shared = {
        "max_length": options.context_length,
        "past_present_share_buffer": dialect.shares_cache_buffer,
    }
    return {"model": model, "search": {**search, **shared}}


def _network(c: DecoderConfig, dialect: type[Dialect]) -> dict[str, Any]:
    """Sizes of the decoder, and what the graph calls its inputs and outputs."""
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if dialect.needs_position_ids:
        inputs["position_ids"] = "position_ids"
    return {
        "hidden_size": c.hidden_size,
        "head_size": c.head_dim,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "num_hidden_layers": c.num_hidden_layers,
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
