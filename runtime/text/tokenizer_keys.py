"""Every key of tokenizer_config.json that is known, and what becomes of it.

They are those of transformers' PreTrainedTokenizerBase, TokenizersBackend, LlamaTokenizer and
Qwen2Tokenizer. How a text is cut into tokens is said by tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsconv.convert.files.known_key import KnownKey, Use

_SPECIAL = KnownKey(Use.USED, "a special token, for templates; recognised in texts")
_MORE = KnownKey(Use.USED, "further special tokens, recognised in texts")
_BATCHES = KnownKey(Use.NO_EFFECT, "for batches of texts; one text is never padded nor cut")
_FILE = KnownKey(Use.NO_EFFECT, "tokenizer.json says it")
_RECORD = KnownKey(Use.NO_EFFECT, "a record of who made the file")
_PARSER = KnownKey(Use.NO_EFFECT, "for parsers of finished answers")

TOKENIZER_KEYS: Mapping[str, KnownKey] = {
    "bos_token": _SPECIAL,
    "eos_token": KnownKey(Use.USED, "ends a text, beside eos_token_id"),
    "unk_token": _SPECIAL,
    "pad_token": _SPECIAL,
    "sep_token": _SPECIAL,
    "cls_token": _SPECIAL,
    "mask_token": _SPECIAL,
    "additional_special_tokens": _MORE,
    "extra_special_tokens": _MORE,
    "model_specific_special_tokens": _MORE,
    "added_tokens_decoder": KnownKey(Use.USED, "tokens that tokenizer.json lacks, and their marks"),
    "add_bos_token": KnownKey(Use.USED, "does a text begin with BOS?"),
    "add_eos_token": KnownKey(Use.NAMED, "a prompt goes on, so no end follows it", (False,)),
    "split_special_tokens": KnownKey(Use.USED, "special tokens in texts are ordinary text then"),
    "chat_template": KnownKey(Use.USED, "after chat_template.jinja and chat_template.json"),
    "clean_up_tokenization_spaces": KnownKey(
        Use.NO_EFFECT, "on tokens none; texts are shown as they decode, as in vLLM and llama.cpp"
    ),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": KnownKey(
        Use.NO_EFFECT, "on tokens none; texts are shown as they decode"
    ),
    "add_prefix_space": _FILE,
    "legacy": _FILE,
    "sp_model_kwargs": _FILE,
    "spaces_between_special_tokens": _FILE,
    "errors": _FILE,
    "vocab": _FILE,
    "merges": _FILE,
    "vocab_file": _FILE,
    "merges_file": _FILE,
    "tokenizer_file": _FILE,
    "tokenizer_object": _FILE,
    "gguf_file": _FILE,
    "post_processor": _FILE,
    "unk_id": _FILE,
    "backend": _FILE,
    "files_loaded": _RECORD,
    "init_inputs": _RECORD,
    "fix_mistral_regex": _FILE,
    "model_max_length": _BATCHES,
    "max_len": _BATCHES,
    "max_length": _BATCHES,
    "stride": _BATCHES,
    "truncation_strategy": _BATCHES,
    "tokenizer_truncation": _BATCHES,
    "tokenizer_padding": _BATCHES,
    "pad_to_multiple_of": _BATCHES,
    "pad_token_type_id": _BATCHES,
    "padding_side": _BATCHES,
    "truncation_side": _BATCHES,
    "model_input_names": _BATCHES,
    "tokenizer_class": _RECORD,
    "processor_class": _RECORD,
    "name_or_path": _RECORD,
    "special_tokens_map_file": _RECORD,
    "is_local": _RECORD,
    "local_files_only": _RECORD,
    "verbose": _RECORD,
    "auto_map": KnownKey(Use.NO_EFFECT, "code of a tokenizer's own is never run"),
    "use_default_system_prompt": KnownKey(Use.NO_EFFECT, "the chat template says it"),
    "response_template": _PARSER,
    "response_schema": _PARSER,
    "chat_control_tokens": _PARSER,
}
