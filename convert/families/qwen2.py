"""Qwen2 and Qwen2.5: biases on query, key and value, and they are huge (|b| above 100)."""

from __future__ import annotations

from dsconv.convert.files.json_file import ConfigReader

from .base import Decoder
from .config_keys import read_decoder_config, refuse_unsupported


class Qwen2(Decoder):
    architecture = "Qwen2ForCausalLM"
    model_type = "qwen2"

    @classmethod
    def from_config(cls, reader: ConfigReader) -> Qwen2:
        # sliding_window and max_window_layers mean nothing while use_sliding_window is false.
        refuse_unsupported(reader, ("sliding_window",))
        return cls(read_decoder_config(reader, qkv_bias=True))
