"""What config.json calls an architecture, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import random_tensors, small_config, write_checkpoint, write_model

from dsconv.convert.families import read_family
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.open import open_checkpoint
from dsconv.errors import UnsupportedError

NAMES = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Model"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Model"),
}


def family(**changes: Any) -> str:
    return read_family(ConfigReader(small_config(**changes), "config.json")).model_type


@pytest.mark.parametrize(
    ("model_type", "name"), [(kind, name) for kind, names in NAMES.items() for name in names]
)
def test_the_names_of_a_family(model_type: str, name: str) -> None:
    assert family(architectures=[name], model_type=model_type) == model_type
    assert family(architectures=[name], model_type=None) == model_type
    assert family(architectures=None, model_type=model_type) == model_type
    assert family(architectures=[], model_type=model_type) == model_type


@pytest.mark.parametrize(
    ("name", "words", "cure"),
    [
        ("LlamaForSequenceClassification", "classes of a text", "LlamaForCausalLM"),
        ("Qwen2ForTokenClassification", "classes of tokens", "Qwen2ForCausalLM"),
        ("Qwen2ForRewardModel", "a reward", "Qwen2ForCausalLM"),
        ("Qwen2VLForConditionalGeneration", "more than text", "Qwen2ForCausalLM"),
        ("PeftModelForCausalLM", "adapter", "merge"),
        ("MambaForCausalLM", "is not supported", "LlamaForCausalLM"),
    ],
)
def test_other_architectures_are_told_apart(name: str, words: str, cure: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as caught:
        family(architectures=[name])
    assert cure in caught.value.hint


def test_two_keys_that_disagree_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="different networks"):
        family(architectures=["LlamaForCausalLM"], model_type="qwen2")


def test_outputs_name_the_whole_architecture(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", architectures=["Qwen2Model"])
    assert open_checkpoint(str(folder)).config["architectures"] == ["Qwen2ForCausalLM"]


def test_a_model_saved_without_its_head_class_is_whole_where_it_is_tied(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"architectures": ["Qwen2Model"], "tie_word_embeddings": True}
    config = small_config(**changes)
    tensors = random_tensors(config)
    bare = {name.removeprefix("model."): array for name, array in tensors.items()}
    checkpoint = open_checkpoint(str(write_model(tmp_path / "m", config, bare)))
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.rows(name), array.astype(np.float32))
