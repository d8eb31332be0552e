"""Llama 2, 3, 3.1 and everything published under the same architecture."""

from __future__ import annotations

from dsconv.convert.files.json_file import ConfigReader

from .base import Decoder
from .config_keys import read_decoder_config, refuse_unsupported


class Llama(Decoder):
    architecture = "LlamaForCausalLM"
    model_type = "llama"

    @classmethod
    def from_config(cls, reader: ConfigReader) -> Llama:
        refuse_unsupported(reader)
        attention_bias = reader.boolean("attention_bias", False)
        return cls(
            read_decoder_config(
                reader,
                qkv_bias=attention_bias,
                output_bias=attention_bias,
                mlp_bias=reader.boolean("mlp_bias", False),
            )
        )
