"""The table of config.json's keys, against the installed transformers."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
import transformers
from reference_models import FAMILIES, SIZES, tiny_config
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters, RotaryEmbeddingConfigMixin

from dsconv.convert.families import read_family
from dsconv.convert.families.config_keys import config_remarks
from dsconv.convert.families.known_keys import CONFIG_KEYS, OF_TRANSFORMERS
from dsconv.convert.families.rope_config import ALWAYS, KINDS, NEUTRAL
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.known_key import Use
from dsconv.errors import UnsupportedError
from dsconv.runtime.generate.generation_keys import GENERATION_KEYS

TAKEN = re.compile(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""")


def keys_of_transformers() -> set[str]:
    """Fields of the classes, what a saved config holds, and old names that are read."""
    keys = set(re.findall(r"^        (\w+) \(", inspect.getdoc(PreTrainedConfig) or "", re.M))
    for family, (config_class, _) in FAMILIES.items():
        keys |= {field.name for field in dataclasses.fields(config_class)}
        keys |= set(tiny_config(family).to_dict())
    for function in (
        PreTrainedConfig.__post_init__,
        PreTrainedConfig.from_dict,
        RotaryEmbeddingConfigMixin.convert_rope_params_to_dict,
    ):
        keys |= set(TAKEN.findall(inspect.getsource(function)))
    return keys - {"return_unused_kwargs"}  # of the call, not of the file


def test_the_table_knows_every_key_of_transformers() -> None:
    assert not keys_of_transformers() - CONFIG_KEYS.keys() - GENERATION_KEYS.keys()


def test_rotary_keys_of_transformers_are_known_or_refused() -> None:
    used = ALWAYS.union(*(kind.keys for kind in KINDS.values()))
    refused = {"short_factor", "long_factor", "mrope_section"}
    assert RopeParameters.__annotations__.keys() - used - NEUTRAL.keys() == refused


def config(**changes: Any) -> ConfigReader:
    data = {**SIZES, "architectures": ["LlamaForCausalLM"], **changes}
    return ConfigReader(data, "config.json")


REFUSED = {key: known for key, known in CONFIG_KEYS.items() if known.use is Use.REFUSED}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_table_refuses_is_refused(key: str) -> None:
    for value in REFUSED[key].neutral or (None,):
        read_family(config(**{key: value}))
    with pytest.raises(UnsupportedError, match=rf"config\.json: {key} = .* is not supported"):
        read_family(config(**{key: "something"}))


def test_what_the_table_names_is_named() -> None:
    for key, known in CONFIG_KEYS.items():
        if known.use is Use.NAMED:
            assert key in config_remarks(config(**{key: {"a": 1}}))[0]
    assert config_remarks(config()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_read(family: str) -> None:
    saved = {**tiny_config(family).to_dict(), "architectures": [FAMILIES[family][1].__name__]}
    assert read_family(ConfigReader(saved, "c")).config.hidden_size == SIZES["hidden_size"]


@pytest.mark.parametrize("key", [k for k, v in OF_TRANSFORMERS.items() if v.use is Use.NO_EFFECT])
def test_keys_without_effect_change_no_logits_of_transformers(key: str) -> None:
    """Those that a model of transformers takes at all."""
    import torch
    from reference_models import tiny_model

    values = {
        "attention_dropout": 0.5, "initializer_range": 0.5, "pretraining_tp": 2, "use_cache": False,
        "chunk_size_feed_forward": 7, "output_hidden_states": True, "output_attentions": False,
        "return_dict": True, "max_window_layers": 1, "pad_token_id": 5, "is_decoder": True,
        "tie_last_hidden_states": True, "num_labels": 5, "name_or_path": "x",
        "transformers_version": "1.0",
    }  # fmt: skip
    if key not in values:
        pytest.skip(f"{key} is no number or word that can be tried")
    tokens = torch.tensor([[5, 6, 7, 8]])
    for family in FAMILIES:
        with torch.no_grad():
            plain = tiny_model(family)(tokens).logits
            changed = tiny_model(family, **{key: values[key]})(tokens).logits
        torch.testing.assert_close(changed, plain, rtol=0, atol=0)


def test_transformers_is_new_enough() -> None:
    assert int(transformers.__version__.partition(".")[0]) >= 5
