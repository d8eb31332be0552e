"""Qwen3: RMSNorm on every query and key head, head_dim independent of hidden_size."""

from __future__ import annotations

from dsconv.convert.files.json_file import ConfigReader

from .base import Decoder
from .config_keys import read_decoder_config, refuse_unsupported

DEFAULT_HEAD_DIM = 128  # of the family, when the config does not say


class Qwen3(Decoder):
    architecture = "Qwen3ForCausalLM"
    model_type = "qwen3"

    @classmethod
    def from_config(cls, reader: ConfigReader) -> Qwen3:
        refuse_unsupported(reader, ("sliding_window", "use_qk_norm", "qk_layernorm"))
        if not reader.has("head_dim"):
            reader = ConfigReader({**reader.data, "head_dim": DEFAULT_HEAD_DIM}, reader.where)
        attention_bias = reader.boolean("attention_bias", False)
        return cls(
            read_decoder_config(
                reader, qkv_bias=attention_bias, output_bias=attention_bias, qk_norm=True
            )
        )
