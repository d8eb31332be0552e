"""Every key of generation_config.json that is known, and what becomes of it in `run`.

transformers reads them in `generation/configuration_utils.py`; some stand there for vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsconv.convert.files.known_key import KnownKey, Use

ONE_TEXT = "one text is written at a time, token by token"
_SPEED = KnownKey(Use.NO_EFFECT, "how fast it is computed, not what")
_RETURNED = KnownKey(Use.NO_EFFECT, "what a call in Python returns beside the text")
_RECORD = KnownKey(Use.NO_EFFECT, "a record of who wrote the file")
_ENCODER = KnownKey(Use.NO_EFFECT, "for models with an encoder")
_OF_BEAMS = KnownKey(Use.NO_EFFECT, "means something for beams only; see num_beams")


def _used(why: str) -> KnownKey:
    return KnownKey(Use.USED, why)


def _named(why: str, *neutral: object) -> KnownKey:
    return KnownKey(Use.NAMED, why, neutral)


GENERATION_KEYS: Mapping[str, KnownKey] = {
    # which token comes next
    "do_sample": _used("false is greedy, unless --temperature is given"),
    "temperature": _used("0 is greedy"),
    "top_k": _used("0 and -1 switch it off, as does leaving it out"),
    "top_p": _used("1 switches it off"),
    "min_p": _used("0 switches it off"),
    "typical_p": _used("1 switches it off"),
    "epsilon_cutoff": _used("0 switches it off"),
    "eta_cutoff": _used("0 switches it off"),
    "repetition_penalty": _used("1 switches it off"),
    "no_repeat_ngram_size": _used("0 switches it off"),
    "bad_words_ids": _used("sequences that never come"),
    "sequence_bias": _used("added to the logits of a sequence's last token"),
    "suppress_tokens": _used("never come"),
    "begin_suppress_tokens": _used("never come first"),
    "top_h": _named("this filter is not built in"),
    "exponential_decay_length_penalty": _named("this penalty is not built in"),
    "forced_bos_token_id": _named("no token is forced"),
    "forced_eos_token_id": _named("no token is forced"),
    "guidance_scale": _named("guidance needs a second prompt", 1, 1.0),
    "watermarking_config": _named("no watermark is written"),
    "token_healing": _named("the prompt's last token is kept", False),
    "presence_penalty": _named("transformers and vLLM do not take it from this file", 0, 0.0),
    "frequency_penalty": _named("transformers and vLLM do not take it from this file", 0, 0.0),
    "renormalize_logits": KnownKey(Use.NO_EFFECT, "probabilities always have the sum 1"),
    "remove_invalid_values": KnownKey(Use.NO_EFFECT, "logits that are NaN or infinite are refused"),
    # where the text ends
    "eos_token_id": _used("one id or several, each ends the text"),
    "stop_strings": _used("as --stop"),
    "max_new_tokens": _used("the default of --max-tokens"),
    "min_new_tokens": _used("no end before as many"),
    "min_length": _used("as min_new_tokens, the prompt included"),
    "max_length": KnownKey(Use.NO_EFFECT, "--max-tokens limits a text, and max_new_tokens"),
    "max_time": _named("time has no limit"),
    # searches
    "num_beams": _named(ONE_TEXT, 1),
    "num_return_sequences": _named(ONE_TEXT, 1),
    "penalty_alpha": _named("contrastive search is not built in", 0, 0.0),
    "dola_layers": _named("the last layer alone decides"),
    "constraints": _named(ONE_TEXT),
    "force_words_ids": _named(ONE_TEXT),
    "num_beam_groups": _OF_BEAMS,
    "diversity_penalty": _OF_BEAMS,
    "length_penalty": _OF_BEAMS,
    "early_stopping": _OF_BEAMS,
    "low_memory": _OF_BEAMS,
    # tokens
    "bos_token_id": _used("begins a text where the tokenizer says so"),
    "pad_token_id": KnownKey(Use.NO_EFFECT, "one text is never padded"),
    "decoder_start_token_id": _ENCODER,
    "encoder_repetition_penalty": _ENCODER,
    "encoder_no_repeat_ngram_size": _ENCODER,
    # speed
    "use_cache": _SPEED,
    "cache_implementation": _SPEED,
    "cache_config": _SPEED,
    "max_cache_len": _SPEED,
    "prefill_chunk_size": _SPEED,
    "compile_config": _SPEED,
    "disable_compile": _SPEED,
    "continuous_batching_config": _SPEED,
    "use_mtp": _SPEED,
    "is_assistant": _SPEED,
    "num_assistant_tokens": _SPEED,
    "num_assistant_tokens_schedule": _SPEED,
    "assistant_confidence_threshold": _SPEED,
    "prompt_lookup_num_tokens": _SPEED,
    "max_matching_ngram_size": _SPEED,
    "assistant_early_exit": _SPEED,
    "assistant_lookbehind": _SPEED,
    "target_lookbehind": _SPEED,
    "assistant_ensemble_weight": _SPEED,
    "speculation_type": _SPEED,
    # the rest
    "output_attentions": _RETURNED,
    "output_hidden_states": _RETURNED,
    "output_scores": _RETURNED,
    "output_logits": _RETURNED,
    "return_dict_in_generate": _RETURNED,
    "_from_model_config": _RECORD,
    "transformers_version": _RECORD,
    "_commit_hash": _RECORD,
}
