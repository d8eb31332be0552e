"""Every key of config.json that is known, and what becomes of it.

They are those of transformers' configs of the three families with their base class, old names
included, and keys of other families that would change what the network computes. Rotary settings
have keys of their own inside (`rope_config`). What is refused here is refused by `config_keys`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsconv.convert.files.known_key import KnownKey, Use


def _used(why: str) -> KnownKey:
    return KnownKey(Use.USED, why)


def _refused(why: str, *neutral: object) -> KnownKey:
    return KnownKey(Use.REFUSED, why, neutral)


_SIZE = _used("a size of the network")
_SWITCH = _used("which biases there are")
_TOKEN = _used("asked after generation_config.json and the tokenizer's files")
_TRAINING = KnownKey(Use.NO_EFFECT, "for training")
_SPEED = KnownKey(Use.NO_EFFECT, "how it is computed, not what")
_RETURNED = KnownKey(Use.NO_EFFECT, "what a call in Python returns beside the logits")
_CLASSIFIER = KnownKey(Use.NO_EFFECT, "for classifiers, which are other architectures")
_RECORD = KnownKey(Use.NO_EFFECT, "a record of where the model comes from")
_WINDOW = KnownKey(Use.NO_EFFECT, "means something while use_sliding_window is true")
_ROTARY = _refused("the rotary positions of another family")
_EXPERTS = _refused("experts are not computed", 0)
_SCALED = _refused("a factor that other families have", 1, 1.0)
_ATTENTION = _refused("attention of another family")
_BESIDE = _refused("branches beside each other are not computed", False)

OF_TRANSFORMERS: Mapping[str, KnownKey] = {
    "architectures": _used("which family it is"),
    "model_type": _used("which family it is, where architectures is missing"),
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "num_hidden_layers": _SIZE,
    "num_attention_heads": _SIZE,
    "num_key_value_heads": _SIZE,
    "head_dim": _SIZE,
    "max_position_embeddings": _used("the longest context"),
    "rms_norm_eps": _used("of every norm"),
    "tie_word_embeddings": _used("is the head the embedding?"),
    "attention_bias": _SWITCH,
    "mlp_bias": _SWITCH,
    "rope_theta": _used("the rotary base"),
    "rope_scaling": _used("rotary settings"),
    "rope_parameters": _used("rotary settings"),
    "original_max_position_embeddings": _used("of YaRN and Llama 3's scaling"),
    "hidden_act": _refused("SwiGLU has silu", "silu", "swish"),
    "partial_rotary_factor": _refused("every feature of a head is turned", 1, 1.0),
    "use_sliding_window": _refused("every layer sees the whole context", False),
    "layer_types": _used("full_attention in every layer, or refused"),
    "sliding_window": KnownKey(
        Use.REFUSED, "in Llama any; in Qwen it means something while use_sliding_window is true"
    ),
    "max_window_layers": _WINDOW,
    "per_layer_config": _refused("layers that differ are not computed", {}),
    "is_encoder_decoder": _refused("a decoder alone is computed", False),
    "add_cross_attention": _refused("a decoder alone is computed", False),
    "is_decoder": KnownKey(Use.NO_EFFECT, "these families always are"),
    "pruned_heads": _refused("every layer has all its heads", {}),
    "auto_map": _used("code of its own is refused, never run"),
    "quantization_config": _used("how the weights are stored"),
    "torch_dtype": _used("of a model whose weights are not there yet, as in plan"),
    "dtype": _used("the newer name of torch_dtype"),
    "bos_token_id": _TOKEN,
    "eos_token_id": _TOKEN,
    "pad_token_id": KnownKey(Use.NO_EFFECT, "one text is never padded"),
    "attention_dropout": _TRAINING,
    "initializer_range": _TRAINING,
    "pretraining_tp": KnownKey(Use.NO_EFFECT, "sums in another order, in old versions"),
    "use_cache": _SPEED,
    "chunk_size_feed_forward": _SPEED,
    "attn_implementation": _SPEED,
    "_attn_implementation_internal": _SPEED,
    "experts_implementation": _SPEED,
    "_experts_implementation_internal": _SPEED,
    "output_hidden_states": _RETURNED,
    "output_attentions": _RETURNED,
    "return_dict": _RETURNED,
    "tie_last_hidden_states": _RETURNED,
    "id2label": _CLASSIFIER,
    "label2id": _CLASSIFIER,
    "num_labels": _CLASSIFIER,
    "problem_type": _CLASSIFIER,
    "transformers_version": _RECORD,
    "name_or_path": _RECORD,
    "_name_or_path": _RECORD,
    "_commit_hash": _RECORD,
}
OF_OTHERS: Mapping[str, KnownKey] = {
    "hidden_activation": _refused("SwiGLU has silu", "silu", "swish"),
    "use_mrope": _refused("positions are those of text", False),
    "rope_interleaved": _refused("the halves of a head are turned", False),
    "rope_local_base_freq": _ROTARY,
    "global_rope_theta": _ROTARY,
    "local_rope_theta": _ROTARY,
    "rope_ratio": _SCALED,
    "rotary_emb_base": _ROTARY,
    "rotary_pct": _refused("every feature of a head is turned", 1, 1.0),
    "rotary_dim": _ROTARY,
    "use_dynamic_ntk": _refused("the rotary base stays as it is", False),
    "use_logn_attn": _refused("scores do not depend on the length", False),
    "no_rope_layers": _refused("every layer has rotary positions", []),
    "no_rope_layer_interval": _ROTARY,
    "alibi": _refused("positions are rotary", False),
    "use_alibi": _refused("positions are rotary", False),
    "parallel_attn": _BESIDE,
    "use_parallel_residual": _BESIDE,
    "attn_logit_softcapping": _ATTENTION,
    "final_logit_softcapping": _refused("logits have no bounds"),
    "attention_multiplier": _ATTENTION,
    "query_pre_attn_scalar": _ATTENTION,
    "attention_chunk_size": _ATTENTION,
    "attn_temperature_tuning": _refused("scores do not depend on the length", False, 0),
    "use_qk_norm": _refused("queries and keys are normed in Qwen3 only", False),
    "qk_layernorm": _refused("queries and keys are normed in Qwen3 only", False),
    "clip_qkv": _ATTENTION,
    "is_causal": _refused("a token sees those before it", True),
    "use_bidirectional_attention": _refused("a token sees those before it", False),
    "embedding_multiplier": _SCALED,
    "residual_multiplier": _SCALED,
    "logits_scaling": _SCALED,
    "logit_scale": _SCALED,
    "scale_emb": _SCALED,
    "scale_depth": _refused("branches are added as they are"),
    "dim_model_base": _refused("logits are not scaled"),
    "num_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "num_local_experts": _refused("experts are not computed", 0, 1),
    "q_lora_rank": _ATTENTION,
    "kv_lora_rank": _ATTENTION,
    "v_head_dim": _ATTENTION,
    "encoder_layers": _refused("a decoder alone is computed", 0),
    "cross_attention_layers": _refused("a decoder alone is computed", []),
    "dual_chunk_attention_config": KnownKey(
        Use.NAMED, "the whole context is seen, as in transformers; vLLM splits long ones"
    ),
}
CONFIG_KEYS: Mapping[str, KnownKey] = {**OF_TRANSFORMERS, **OF_OTHERS}
