"""Configs in, families out: sizes, strict keys, rotary frequencies, against transformers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from places import SHARED_DATA, needs_shared_data
from reference_models import SIZES, tiny_model

from dsconv.convert.families import read_family
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.families.wiring import wiring_of
from dsconv.convert.files.json_file import ConfigReader, parse_json, read_json_object
from dsconv.errors import DsconvError, InputError, UnsupportedError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
MODEL_SIZES = {
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
}


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config.json that is read without complaint, with changes."""
    return {**SIZES, "architectures": [ARCHITECTURES[family]], **changes}


def read(data: dict[str, Any]) -> Decoder:
    return read_family(ConfigReader(data, "some/config.json"))


def size(decoder: Decoder) -> int:
    return sum(parameter.size for parameter in parameters_of(decoder))


# ---------------------------------------------------------------- sizes


@needs_shared_data
@pytest.mark.parametrize("name", MODEL_SIZES)
def test_parameter_count_of_the_distills(name: str) -> None:
    path = SHARED_DATA / "configs" / name / "config.json"
    decoder = read_family(ConfigReader(read_json_object(path), str(path)))
    assert size(decoder) == MODEL_SIZES[name]
    assert not decoder.config.tie_word_embeddings


@needs_shared_data
@pytest.mark.parametrize("name", ["DeepSeek-V2-Lite-Chat", "DeepSeek-V3-R1"])
def test_mixtures_of_experts_are_refused(name: str) -> None:
    path = SHARED_DATA / "configs" / name / "config.json"
    with pytest.raises(UnsupportedError, match="ForCausalLM"):
        read_family(ConfigReader(read_json_object(path), str(path)))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 24}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "head_dim": 24}),
    ],
)
def test_names_and_shapes_equal_those_of_transformers(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes)
    ours = {p.name: p.shape for p in parameters_of(read(model.config.to_dict() | arch(family)))}
    assert ours == {name: tuple(p.shape) for name, p in model.named_parameters()}


def arch(family: str) -> dict[str, Any]:
    return {"architectures": [ARCHITECTURES[family]]}


def test_linears_of_one_input_share_a_group() -> None:
    groups: dict[int, list[str]] = {}
    for parameter in parameters_of(read(config("qwen2"))):
        if parameter.role is Role.LINEAR:
            groups.setdefault(parameter.group, []).append(parameter.name.split(".")[-2])
    expected = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert list(groups.values()) == expected * SIZES["num_hidden_layers"]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_input_is_traced_to_the_norm_or_linear_map_that_gives_it(family: str) -> None:
    decoder = read(config(family))
    wiring = wiring_of(decoder, 1)
    sources = {}
    for group in wiring.groups:
        names = tuple(linear.name.removeprefix("model.layers.1.") for linear in group.linears)
        assert group.source is not None
        sources[names] = group.source.name.removeprefix("model.layers.1.")
    assert sources == {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "input_layernorm",
        ("self_attn.o_proj",): "self_attn.v_proj",
        ("mlp.gate_proj", "mlp.up_proj"): "post_attention_layernorm",
        ("mlp.down_proj",): "mlp.up_proj",
    }
    heads, kv_heads = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
    attention = decoder.attention_name(1)
    rows = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    assert wiring.row_heads == {f"{attention}.{name}": count for name, count in rows.items()}
    assert wiring.column_heads == {f"{attention}.o_proj": heads}


def test_model_type_stands_in_for_missing_architectures() -> None:
    data = config() | {"model_type": "qwen2"}
    del data["architectures"]
    assert read(data).architecture == "Qwen2ForCausalLM"


def test_qwen3_default_head_dim_is_that_of_transformers() -> None:
    assert read(config("qwen3")).config.head_dim == transformers.Qwen3Config().head_dim


# ---------------------------------------------------------------- strict keys


REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "missing"),
        ("64", "not an integer"),
        (64.0, "not an integer"),
        (True, "not an integer"),
        ([64], "not an integer"),
        (float("nan"), "not an integer"),
        (-64, "outside"),
        (0, "outside"),
        (2**40, "outside"),
    ],
)
def test_sizes_fail_by_file_and_key(key: str, value: Any, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^some/config\.json: {key}: .*{problem}"):
        read(config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", 2.0),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", True),
        ("rope_theta", float("nan")),
        ("rope_theta", 0.5),
        ("rope_theta", -10000.0),
        ("rope_theta", 1e30),
        ("rope_theta", False),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 8),
        ("num_attention_heads", 6),
        ("head_dim", 15),
        ("head_dim", True),
        ("tie_word_embeddings", 1),
        ("tie_word_embeddings", "false"),
        ("attention_bias", 0),
        ("mlp_bias", "true"),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("layer_types", True),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"rope_type": "linear"}),
    ],
)
def test_wrong_values_fail_by_file_and_key(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^some/config\.json: {key}: "):
        read(config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("sliding_window", 1024),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("n_routed_experts", 64),
        ("kv_lora_rank", 512),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("embedding_multiplier", 12.0),
        ("residual_multiplier", 0.22),
        ("logits_scaling", 8.0),
        ("logit_scale", 0.0625),
        ("scale_emb", 12),
        ("clip_qkv", 8.0),
        ("partial_rotary_factor", 0.5),
        ("use_mrope", True),
        ("num_experts", False),  # 0 is neutral, false is a sign of something else
    ],
)
def test_keys_that_change_the_network_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=rf"^some/config\.json: {key} ") as caught:
        read(config(**{key: value}))
    assert "supported" in caught.value.hint


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "DeepseekV3ForCausalLM", ""])
def test_unknown_architecture(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"some/config\.json: architecture"):
        read(config(architectures=[name]))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"hidden_act": "silu", "pretraining_tp": 1, "use_cache": True}),
        ("llama", {"partial_rotary_factor": 1.0, "rope_scaling": None, "sliding_window": None}),
        ("llama", {"num_local_experts": 1, "logit_scale": 1.0, "layer_types": None}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}),
        ("qwen2", {"layer_types": ["full_attention"] * 2, "use_mrope": False}),
        ("qwen3", {"use_sliding_window": False, "attention_dropout": 0.0, "head_dim": 32}),
    ],
)
def test_neutral_values_are_accepted(family: str, changes: dict[str, Any]) -> None:
    assert read(config(family, **changes)).config.hidden_size == SIZES["hidden_size"]


@pytest.mark.parametrize("kind", ["longrope", "su", "mrope", "proportional", ""])
def test_unknown_rope_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"rope_scaling: rope_type '{kind}'"):
        read(config(rope_scaling={"rope_type": kind, "factor": 2.0}))


@pytest.mark.parametrize(
    ("scaling", "key"),
    [
        ({"rope_type": "linear", "factor": True}, "factor"),
        ({"rope_type": "linear", "factor": -2.0}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "low_freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "high_freq_factor",
        ),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": "32"}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": float("nan")}, "attention_fac"),
    ],
)
def test_rope_values_fail_by_key(scaling: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"^some/config\.json: rope_scaling: {key}"):
        read(config(rope_scaling=scaling))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[1", "[" * 100_000])
def test_json_that_is_not_json(text: str) -> None:
    with pytest.raises(InputError, match=r"^x\.json: not valid JSON"):
        parse_json(text, "x.json")


def test_json_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match=r"config\.json: cannot read"):
        read_json_object(path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: the top level is list"):
        read_json_object(path)


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_escapes_as_anything_else(seed: int) -> None:
    """Any value under any key gives a model or a DsconvError, not a traceback."""
    chance = np.random.default_rng(seed)
    junk = [None, True, -1, 0, 3, 1e308, float("nan"), "", "x", [], [None], {}, {"a": 1}, 2**70]
    keys = [*config(), "rope_scaling", "rope_parameters", "head_dim", "layer_types", "rope_theta"]
    data = config("qwen3")
    for key in chance.choice(keys, 2, replace=False):
        data[str(key)] = junk[chance.integers(len(junk))]
    with contextlib.suppress(DsconvError):
        parameters_of(read(data))
