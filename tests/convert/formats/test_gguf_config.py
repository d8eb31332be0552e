"""The settings of GGUF files: rotary scalings against llama.cpp, and what every key is to us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_models import HEAD_DIM, HIDDEN, metadata, plain_tensors, tiny_file, write_gguf
from processes.llama_cpp_process import next_token_log_probabilities

from dsconv.convert.families.rope import Llama3Scaling, Rope, YarnScaling
from dsconv.convert.formats.gguf.keys import NEUTRAL, USED, WINDOW, WITHOUT_EFFECT, neutral_values
from dsconv.convert.formats.gguf.read import open_gguf
from dsconv.errors import UnsupportedError
from dsconv.runtime.sessions.torch_reference import TorchSession

PROMPTS = [[5, 9, 40, 77, *range(50, 90)], [33, 2, 60, 61, 62, 8, 4, 12, *range(10, 40)]]


def scaled_file(
    path: Path, arch: str, divisors: Any = None, dtype: Kind = Kind.F32, **changes: Any
) -> Path:
    """The tiny model with weights of a size at which softmax is not decided by one score."""
    tensors = {
        name: (values if values.ndim == 1 else 0.06 * values, kind)
        for name, (values, kind) in plain_tensors(arch).items()
    }
    if divisors is not None:
        tensors["rope_freqs.weight"] = (np.asarray(divisors, np.float32), dtype)
    keys = metadata(arch, **{"ARCH.attention.key_length": HEAD_DIM, **changes})
    return write_gguf(path / "scaled.gguf", arch, keys, tensors)


def assert_llama_cpp_agrees(path: Path) -> None:
    session = TorchSession(open_gguf(path))
    ours = np.stack([session.score(prompt)[-1] for prompt in PROMPTS]).astype(np.float64)
    ours -= np.logaddexp.reduce(ours, axis=1, keepdims=True)
    theirs = next_token_log_probabilities(path, PROMPTS, session.vocabulary, exact=True)
    assert float(np.abs(ours - theirs).max()) < 1e-4


YARN = {
    "ARCH.rope.scaling.type": "yarn",
    "ARCH.rope.scaling.factor": 4.0,
    "ARCH.rope.scaling.original_context_length": 32,
}
SCALINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("llama", {}),
    "no base": ("qwen3", {"ARCH.rope.freq_base": None}),
    "type none beside a factor": (
        "llama",
        {"ARCH.rope.scaling.type": "none", "ARCH.rope.scaling.factor": 4.0},
    ),
    "linear": (
        "qwen2",
        {"ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": 4.0},
    ),
    "linear without a type": ("llama", {"ARCH.rope.scaling.factor": 2.0}),
    "linear of old files": ("llama", {"ARCH.rope.scale_linear": 4.0}),
    "factor 0": ("llama", {"ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": 0.0}),
    "yarn": ("qwen2", YARN),
    "yarn of the whole context": (
        "llama",
        {**YARN, "ARCH.rope.scaling.original_context_length": None},
    ),
    "yarn with an attention factor": ("qwen3", {**YARN, "ARCH.rope.scaling.attn_factor": 1.3}),
    "yarn, its own factors the usual": (
        "qwen2",
        {**YARN, "ARCH.rope.scaling.yarn_ext_factor": 1.0},
    ),
}


@pytest.mark.parametrize("case", SCALINGS)
def test_scalings_are_those_of_llama_cpp(tmp_path: Path, case: str) -> None:
    arch, changes = SCALINGS[case]
    assert_llama_cpp_agrees(scaled_file(tmp_path, arch, **changes))


def test_betas_are_used_although_llama_cpp_ignores_them(tmp_path: Path) -> None:
    """The model that the file was made from has them."""
    betas = {"ARCH.rope.scaling.yarn_beta_fast": 8.0, "ARCH.rope.scaling.yarn_beta_slow": 2.0}
    scaling = open_gguf(scaled_file(tmp_path, "qwen2", **YARN, **betas)).decoder.config.rope.scaling
    assert isinstance(scaling, YarnScaling)
    assert (scaling.beta_fast, scaling.beta_slow) == (8.0, 2.0)


@pytest.mark.parametrize(
    ("factor", "original"), [(8.0, 8192), (32.0, 8192), (4.0, 64), (16.0, 1024)]
)
def test_llama3_scaling_is_recognized(tmp_path: Path, factor: float, original: int) -> None:
    scaled = Rope(500000.0, HEAD_DIM, Llama3Scaling(factor, 1.0, 4.0, original)).frequencies()
    divisors = Rope(500000.0, HEAD_DIM).frequencies() / scaled
    path = scaled_file(tmp_path, "llama", divisors)
    checkpoint = open_gguf(path)
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    np.testing.assert_array_equal(checkpoint.decoder.config.rope.frequencies(), scaled)
    assert_llama_cpp_agrees(path)


def test_divisors_that_do_nothing(tmp_path: Path) -> None:
    path = scaled_file(tmp_path, "llama", np.ones(HEAD_DIM // 2))
    assert open_gguf(path).config["rope_scaling"] is None
    half = scaled_file(tmp_path, "llama", np.ones(HEAD_DIM // 2), Kind.F32)
    assert open_gguf(half).config["rope_scaling"] is None


@pytest.mark.parametrize(
    ("arch", "divisors", "changes"),
    [
        ("llama", np.linspace(1, 8, HEAD_DIM // 2), {}),
        ("llama", np.ones(HEAD_DIM), {}),
        ("llama", np.full(HEAD_DIM // 2, np.nan), {}),
        ("llama", np.ones(HEAD_DIM // 2), {"ARCH.rope.scaling.factor": 2.0}),
        ("qwen2", np.ones(HEAD_DIM // 2), {}),
    ],
)
def test_other_divisors_are_refused(
    tmp_path: Path, arch: str, divisors: Any, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight"):
        open_gguf(scaled_file(tmp_path, arch, divisors, **changes))


def test_other_scalings_are_refused(tmp_path: Path) -> None:
    for kind in ("longrope", "dynamic"):
        with pytest.raises(UnsupportedError, match=kind):
            open_gguf(tiny_file(tmp_path, **{"ARCH.rope.scaling.type": kind}))


# ---------------------------------------------------------------- keys


def architecture_keys() -> list[str]:
    """Every key under an architecture's name that the package gguf knows."""
    found = []
    for section in vars(gguf.Keys).values():
        for value in vars(section).values() if isinstance(section, type) else ():
            if isinstance(value, str) and value.startswith("{arch}.") and "{dense}" not in value:
                found.append(value.removeprefix("{arch}."))
    return found


def test_the_table_names_keys_that_exist() -> None:
    known = set(architecture_keys())
    assert len(known) > 90
    of_llama_cpp = {"rope.scale_linear", "attention.value_scale", "num_loops"}
    assert {*USED, *WITHOUT_EFFECT, *NEUTRAL, *WINDOW} <= known | of_llama_cpp


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_key_is_used_without_effect_or_refused(tmp_path: Path, arch: str) -> None:
    for key in architecture_keys():
        neutral = neutral_values(arch, key)
        if neutral is None:
            continue
        for good in neutral:
            if good in ("", []) or key.startswith("rope.scaling.yarn_ext"):
                continue
            value = float(good) if isinstance(good, int) and good < 0 else good
            open_gguf(tiny_file(tmp_path, arch, **{f"ARCH.{key}": value}))
        bad = 7.0 if True not in neutral else False
        with pytest.raises(UnsupportedError, match=f"{arch}.{key} = "):
            open_gguf(tiny_file(tmp_path, arch, **{f"ARCH.{key}": bad}))


def test_numbers_per_layer(tmp_path: Path) -> None:
    same = {"ARCH.feed_forward_length": [HIDDEN, HIDDEN], "ARCH.attention.head_count_kv": [2, 2]}
    assert open_gguf(tiny_file(tmp_path, **same)).config["num_key_value_heads"] == 2
    with pytest.raises(UnsupportedError, match=r"head_count_kv differs between layers: \[2, 1\]"):
        open_gguf(tiny_file(tmp_path, **{"ARCH.attention.head_count_kv": [2, 1]}))
