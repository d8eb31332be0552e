"""Rotary settings in every place where config.json may hold them, against transformers."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import dsconv
from reference_models import FAMILIES, SIZES, tiny_config, tiny_model
from small_models import LLAMA, gpt2_checkpoint, write_checkpoint
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from dsconv.convert.families import read_family
from dsconv.convert.families.base import Decoder
from dsconv.convert.families.rope import Rope
from dsconv.convert.families.rope_config import read_rope, rope_remark, with_portable_rope
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.formats.gguf.container import read_header
from dsconv.errors import InputError, UnsupportedError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
EMBEDDINGS = {"llama": LlamaRotaryEmbedding, "qwen2": Qwen2RotaryEmbedding}


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    return {**SIZES, "architectures": [ARCHITECTURES[family]], **changes}


def read(data: dict[str, Any]) -> Decoder:
    return read_family(ConfigReader(data, "some/config.json"))


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 2.7},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "llama3", **LLAMA3, "factor": 32.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
    },
    {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    {
        "rope_type": "yarn",
        "factor": 2.5,
        "original_max_position_embeddings": 8192,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "attention_factor": 1.25,
    },
]


@pytest.mark.parametrize("head_dim", [16, 24, 64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
@pytest.mark.parametrize("rope", ROPES, ids=lambda r: "-".join(str(v) for v in r.values()))
def test_frequencies_equal_those_of_transformers(
    rope: dict[str, Any], theta: float, head_dim: int
) -> None:
    changes = {"head_dim": head_dim, "max_position_embeddings": 131_072}
    reference = tiny_config("llama", rope_parameters={**rope, "rope_theta": theta}, **changes)
    wanted, factor = _reference(reference)
    data = config(rope_theta=theta, rope_scaling=rope, **changes)
    ours = read_rope(ConfigReader(data, "c"), head_dim, 131_072)
    # Bit-equal but for torch's own float32 power, which is one unit off the true one now and then.
    np.testing.assert_array_max_ulp(ours.frequencies(), wanted, maxulp=2)
    assert math.isclose(ours.attention_factor, factor, rel_tol=1e-12)


def _reference(reference: Any) -> tuple[Any, float]:
    kind = reference.rope_parameters["rope_type"]
    if kind == "default":
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(reference)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](reference, torch.device("cpu"))
    return frequencies.numpy(), factor


@pytest.mark.parametrize("rope", ROPES, ids=lambda r: "-".join(str(v) for v in r.values()))
def test_old_and_new_keys_read_the_same(rope: dict[str, Any]) -> None:
    old = read(config(rope_theta=5e5, rope_scaling=rope)).config.rope
    older = dict(rope)
    older["type"] = older.pop("rope_type")
    oldest = read(config(rope_theta=5e5, rope_scaling=older)).config.rope
    new = read(config(rope_parameters={**rope, "rope_theta": 5e5})).config.rope
    assert old == oldest == new
    assert new.theta == 5e5


def test_rope_theta_has_the_published_default() -> None:
    assert read(config()).config.rope == Rope(10_000.0, 16)


def test_what_transformers_saves_is_read_back(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    tiny_model("llama", rope_parameters=rope).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    by_hand = config(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    assert read(saved).config.rope == read(by_hand).config.rope


# ---------------------------------------------------------------- every place, against transformers

YARN = {"rope_type": "yarn", "factor": 4.0}
DEFAULT = {"rope_type": "default"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
PLACES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top": {"rope_theta": 5e5},
    "whole number": {"rope_theta": 500000},
    "inside scaling": {"rope_scaling": {**DEFAULT, "rope_theta": 5e5}},
    "inside scaling, no type": {"rope_scaling": {"rope_theta": 5e5}},
    "inside parameters": {"rope_parameters": {**DEFAULT, "rope_theta": 5e5}},
    "inside parameters, no type": {"rope_parameters": {"rope_theta": 5e5}},
    "both places": {"rope_theta": 5e5, "rope_scaling": {**LINEAR, "rope_theta": 5e5}},
    "parameters take the outer theta": {"rope_theta": 5e5, "rope_parameters": dict(LINEAR)},
    "both blocks": {
        "rope_scaling": {**LINEAR, "rope_theta": 5e5},
        "rope_parameters": {**LINEAR, "rope_theta": 5e5},
    },
    "empty scaling": {"rope_scaling": {}, "rope_parameters": {**LINEAR, "rope_theta": 5e5}},
    "old word": {"rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    "both words": {"rope_scaling": {"type": "linear", **LINEAR}},
    "dynamic": {"rope_theta": 5e5, "rope_scaling": {"type": "dynamic", "factor": 2.3}},
    "whole factor": {"rope_scaling": {"type": "linear", "factor": 4}},
    "partial of one": {"partial_rotary_factor": 1.0, "rope_theta": 5e5},
    "partial of one inside": {"rope_scaling": {**LINEAR, "partial_rotary_factor": 1.0}},
    "yarn, original at the top": {"original_max_position_embeddings": 128, "rope_scaling": YARN},
    "yarn, original twice": {
        "original_max_position_embeddings": 128,
        "rope_scaling": {**YARN, "original_max_position_embeddings": 128},
    },
    "yarn without original": {"rope_scaling": YARN},
    "yarn by lengths": {
        "rope_scaling": {**YARN, "factor": None, "original_max_position_embeddings": 128}
    },
    "yarn truncate null": {
        "rope_scaling": {**YARN, "truncate": None, "original_max_position_embeddings": 128}
    },
    "yarn betas of 0": {
        "rope_scaling": {
            **YARN, "beta_fast": 0, "beta_slow": 0, "original_max_position_embeddings": 128
        }
    },
    "yarn one mscale": {
        "rope_scaling": {**YARN, "mscale": 0.7, "original_max_position_embeddings": 128}
    },
    "yarn nulls": {
        "rope_scaling": {
            **YARN,
            "attention_factor": None,
            "beta_fast": None,
            "mscale": None,
            "original_max_position_embeddings": 128,
        }
    },
    "llama3 without original": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0
        }
    },
    "finetuned": {
        "rope_scaling": {**YARN, "finetuned": True, "original_max_position_embeddings": 128}
    },
    "attn_factor": {
        "rope_scaling": {**YARN, "attn_factor": 0.878, "original_max_position_embeddings": 128}
    },
}  # fmt: skip


def _of_transformers(family: str, keys: dict[str, Any]) -> tuple[Any, float]:
    """What its model computes from the keys, at a position within the context."""
    own = FAMILIES[family][0].from_dict(copy.deepcopy({**SIZES, **keys}))
    embedding = EMBEDDINGS[family](own)
    embedding(torch.zeros(1, 1, 1), torch.tensor([[own.max_position_embeddings - 1]]))
    return embedding.inv_freq.numpy(), embedding.attention_scaling


@pytest.mark.parametrize("family", EMBEDDINGS)
@pytest.mark.parametrize("place", PLACES)
def test_every_place_reads_as_in_transformers(family: str, place: str) -> None:
    wanted, factor = _of_transformers(family, PLACES[place])
    ours = read(config(family, **PLACES[place])).config.rope
    np.testing.assert_array_max_ulp(ours.frequencies(), wanted, maxulp=2)
    assert math.isclose(ours.attention_factor, factor, rel_tol=1e-12)


@pytest.mark.parametrize("family", EMBEDDINGS)
@pytest.mark.parametrize("place", PLACES)
def test_written_configs_say_it_where_old_and_new_readers_look(family: str, place: str) -> None:
    data = config(family, **PLACES[place])
    expected = read(data).config.rope
    written = with_portable_rope(data, "c")
    assert read(written).config.rope == expected
    wanted, factor = _of_transformers(family, {k: v for k, v in written.items() if k not in SIZES})
    np.testing.assert_array_max_ulp(expected.frequencies(), wanted, maxulp=2)
    assert math.isclose(expected.attention_factor, factor, rel_tol=1e-12)
    # Before transformers 5: the base at the top level, the rest in rope_scaling, nowhere else.
    assert written.get("rope_theta", 10000.0) == expected.theta
    old = {k: v for k, v in written.items() if k != "rope_parameters"}
    old["rope_scaling"] = {
        k: v for k, v in (old.get("rope_scaling") or {}).items() if k != "rope_theta"
    }
    assert read(old).config.rope == expected
    assert with_portable_rope(written, "c") == written


NESTED = {
    "full_attention": {**LINEAR, "rope_theta": 5e5},
    "sliding_attention": {**DEFAULT, "rope_theta": 1e4},
}


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_of_settings_per_layer_type_those_of_the_layers_are_used(family: str, key: str) -> None:
    """transformers drops them for Llama and stops with a KeyError for Qwen2."""
    data = config(family, **{key: NESTED})
    flat = read(config(rope_theta=5e5, rope_scaling=LINEAR)).config.rope
    assert read(data).config.rope == flat
    written = with_portable_rope(data, "c")
    wanted, _ = _of_transformers(family, {k: v for k, v in written.items() if k not in SIZES})
    np.testing.assert_array_max_ulp(flat.frequencies(), wanted, maxulp=2)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope_theta": 1e6, "rope_scaling": {"rope_theta": 5e5}}, "1e.06, but .*rope_scaling"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}}, "rope_parameters: rope_th"),
        ({"rope_scaling": {**LINEAR, "type": "yarn"}}, "contradicts type 'yarn'"),
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5e5}}, "contradict each other"),
        (
            {"rope_scaling": {"rope_theta": 1e6}, "rope_parameters": {"rope_theta": 5e5}},
            "theta 1e.06 .*theta 500000",
        ),
        (
            {
                "original_max_position_embeddings": 128,
                "rope_scaling": {**YARN, "original_max_position_embeddings": 64},
            },
            "= 128, but .* says 64",
        ),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(config(**keys))


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({**LINEAR, "alpha": 1000.0}, "alpha"),
        ({**DEFAULT, "factor": 4.0}, "factor"),
        ({**DEFAULT, "factor": True}, "factor"),
        ({**DEFAULT, "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({**LINEAR, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**LINEAR, "beta_fast": 32}, "beta_fast"),
        ({**YARN, "short_factor": [1.0]}, "short_factor"),
        ({**YARN, "low_freq_factor": 1.0}, "low_freq_factor"),
        ({**YARN, "apply_yarn_scaling": False}, "apply_yarn_scaling"),
        ({"full_attention": LINEAR, "rope_theta": 5e5}, "rope_theta beside"),
        ({"sliding_attention": LINEAR}, "no settings for 'full_attention'"),
        ({"full_attention": None, "sliding_attention": LINEAR}, "no settings for"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(block: dict[str, Any], key: str) -> None:
    for place in ("rope_scaling", "rope_parameters"):
        with pytest.raises(UnsupportedError, match=f"{place}: {key}"):
            read(config(**{place: block}))


def test_what_readers_disagree_about_is_named() -> None:
    """DeepSeek-R1-0528-Qwen3-8B says attn_factor, which makes up for YaRN's own in vLLM."""
    block = {**YARN, "attn_factor": 0.8782488562869419, "original_max_position_embeddings": 128}
    said = rope_remark(ConfigReader(config(rope_scaling=block), "config.json"))
    assert said is not None
    assert "attn_factor = 0.878249 is not applied" in said
    assert said.endswith("set attention_factor to 1")
    assert rope_remark(ConfigReader(config(rope_scaling=YARN), "config.json")) is None


def test_outputs_carry_the_base_to_other_readers(tmp_path: Path) -> None:
    """Quantized folders, repacked ones and GGUF of a model that says it in the newest place."""
    block = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    gpt2_checkpoint(tmp_path / "m", **LLAMA, rope_theta=None, rope_parameters=block)
    assert dsconv("quantize", tmp_path / "m", "--method", "rtn", "-o", tmp_path / "q").code == 0
    for format in ("compressed-tensors", "onnx", "gguf"):
        out = tmp_path / (f"{format}.gguf" if format == "gguf" else format)
        done = dsconv("export", tmp_path / "q", "--format", format, "-o", out)
        assert done.code == 0, done.err
    for folder in ("q", "compressed-tensors", "onnx"):
        written = json.loads((tmp_path / folder / "config.json").read_text())
        assert written["rope_theta"] == 5e5
        assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
        assert written["rope_parameters"] == block
    data, _ = read_header(tmp_path / "gguf.gguf")
    assert data["llama.rope.freq_base"] == 5e5
    assert data["llama.rope.scaling.factor"] == 2.0


def test_a_remark_is_said_once(tmp_path: Path) -> None:
    block = {**YARN, "attn_factor": 0.5, "original_max_position_embeddings": 128}
    write_checkpoint(tmp_path / "m", rope_scaling=block)
    done = dsconv("run", tmp_path / "m", "-p", "a", "--max-tokens", "1")
    assert done.code == 0
    assert done.err.count("attn_factor = 0.5 is not applied") == 1


def test_dynamic_ends_where_it_would_scale(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", rope_scaling={"type": "dynamic", "factor": 2.0})
    within = dsconv("export", tmp_path / "m", "-o", tmp_path / "x", "--context-length", 2048)
    assert within.code == 0, within.err
    beyond = dsconv("export", tmp_path / "m", "-o", tmp_path / "y", "--context-length", 2049)
    assert beyond.code == 4
    assert "beyond 2048 positions" in beyond.err
