"""Recipes: the schema refuses with file, key, value and what is allowed; those that come along."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from places import ROOT

from dsconv.convert.formats.onnx.export import DIALECTS
from dsconv.convert.formats.onnx.names import DIALECT_NAMES
from dsconv.errors import DsconvError, InputError, UnsupportedError, UsageError
from dsconv.runtime.build.recipe import (
    ExportPart,
    Parts,
    Recipe,
    VerifyPart,
    all_recipes,
    load_recipe,
    recipe_names,
)
from dsconv.runtime.quantize_request import QuantizeRequest

CHECKPOINTS = {
    "r1-distill-qwen-1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "r1-distill-qwen-7b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "r1-distill-qwen-14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
    "r1-distill-qwen-32b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "r1-distill-llama-8b": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "r1-distill-llama-70b": "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
    "r1-0528-qwen3-8b": "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
}
TARGETS = (
    "cpu-int4",
    "cpu-int8",
    "native-int4",
    "native-int8",
    "gguf-int4",
    "vllm-int4",
    "vllm-w8a8",
    "cuda-int4",
    "openvino-int4",
    "openvino-int8",
)
HEAD = 'description = "d"\nsource = "org/model"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path, text: str, *settings: str) -> Recipe:
    return load_recipe(str(written(folder, text)), settings)


# ---------------------------------------------------------------- those that come with dsconv


def test_there_is_one_per_checkpoint_and_target() -> None:
    expected = {f"{model}-{target}" for model in CHECKPOINTS for target in TARGETS}
    smollm2 = {"smollm2-135m-native-int4", "smollm2-135m-cpu-int8"}
    assert set(recipe_names()) == expected | smollm2


@pytest.mark.parametrize("name", recipe_names())
def test_it_is_valid_and_can_be_judged(name: str) -> None:
    recipe = load_recipe(name)
    recipe.check()
    assert recipe.name == name
    assert recipe.verify.max_kl is not None
    assert recipe.verify.min_top1 is not None


def test_recipes_of_one_target_differ_by_model_and_limits_only() -> None:
    by_target = defaultdict(list)
    for recipe in all_recipes():
        for model, source in CHECKPOINTS.items():
            if recipe.name.startswith(f"{model}-"):
                assert recipe.source == source
                alike = replace(recipe, source="", name="", file="", verify=VerifyPart())
                by_target[recipe.name.removeprefix(f"{model}-")].append(alike)
    assert set(by_target) == set(TARGETS)
    for recipes in by_target.values():
        assert len(recipes) == len(CHECKPOINTS)
        assert all(recipe == recipes[0] for recipe in recipes)


def test_the_names_of_dialects_are_those_of_the_exporter() -> None:
    assert tuple(DIALECTS) == DIALECT_NAMES


@pytest.mark.parametrize("name", [name for name in recipe_names() if "vllm" not in name])
def test_what_serves_is_what_judges(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.verify.provider == recipe.export.target


def test_the_documentation_names_every_key() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for part in (Parts, QuantizeRequest, ExportPart, VerifyPart):
        for entry in fields(part):
            assert f"`{entry.name}`" in text or f"`[{entry.name}]`" in text, entry.name
    for target in TARGETS:
        assert f"`{target}`" in text


# ---------------------------------------------------------------- reading


def test_what_is_left_out_has_the_default(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, HEAD)
    assert recipe.quantize is None
    assert (recipe.revision, recipe.name) == ("main", "mine")
    assert recipe.export == ExportPart("onnx", "cpu", None, 4, None, None)
    assert recipe.verify == VerifyPart()
    assert loaded(tmp_path, HEAD + "[quantize]").quantize == QuantizeRequest()


def test_values_and_types(tmp_path: Path) -> None:
    text = HEAD + (
        "[quantize]\nbits = 8\nsymmetric = false\ntarget_bpw = 9\n"
        'calibration = ["self", "a.jsonl=2"]\n[verify]\nmax_kl = 1\n'
    )
    recipe = loaded(tmp_path, text)
    assert recipe.quantize is not None
    assert (recipe.quantize.bits, recipe.quantize.symmetric) == (8, False)
    assert recipe.quantize.calibration == ("self", "a.jsonl=2")
    assert isinstance(recipe.quantize.target_bpw, float)  # an integer is a number too
    assert isinstance(recipe.verify.max_kl, float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[quantize]\nbits = 7", ["quantize.bits", "7", "3, 4, 5, 6, 8"]),
        ("[quantize]\nbits = '4'", ["quantize.bits", "'4'", "an integer", "3, 4, 5, 6, 8"]),
        ("[quantize]\nbits = true", ["quantize.bits", "True", "an integer"]),
        ("[quantize]\nsymmetric = 1", ["quantize.symmetric", "1", "true or false"]),
        ("[quantize]\nbit = 4", ["quantize.bit:", "unknown", "quantize.bits"]),
        ("[quantise]\nbits = 4", ["quantise", "unknown", "did you mean quantize"]),
        ("[quantize]\ncalibration = 'x'", ["quantize.calibration", "'x'", "list of strings"]),
        ("[quantize]\ncalibration = [1]", ["quantize.calibration", "[1]", "list of strings"]),
        ("[quantize]\ntarget_bpw = nan", ["quantize.target_bpw", "nan", "2 to 16"]),
        ("[quantize]\ncalibration_tokens = 0", ["calibration_tokens", "0", "1 or more"]),
        ("quantize = 4", ["quantize", "4", "not a table"]),
        ("[export]\nformat = 'onnxx'", ["export.format", "onnxx", "onnx, native, gguf"]),
        ("[verify]\nmax_kl = -0.1", ["verify.max_kl", "-0.1", "0 or more"]),
        ("[verify]\nmin_top1 = 1.5", ["verify.min_top1", "1.5", "0 to 1"]),
        ("[verify]\nmax_kl = inf\nmax_kl = 2", ["not valid TOML"]),
    ],
)
def test_a_value_that_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, HEAD + text)
    said = f"{caught.value.message} | {caught.value.hint}"
    assert "mine.toml" in said
    for word in words:
        assert word in said


@pytest.mark.parametrize("missing", ["description", "source"])
def test_a_required_key(tmp_path: Path, missing: str) -> None:
    text = "".join(line for line in HEAD.splitlines(True) if not line.startswith(missing))
    with pytest.raises(InputError, match=rf"mine\.toml: {missing}: missing"):
        loaded(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[export]\ntarget = 'cuda'\nformat = 'gguf'", UnsupportedError, "does not read format"),
        ("[export]\ntarget = 'groq'", UnsupportedError, "target groq"),
        ("[export]\ntarget = 'cann'\ndialect = 'std17'", InputError, "has one of its own"),
        ("[quantize]\nscheme = 'scale-min'", InputError, "'scale-min' cannot be exported as"),
        ("[export]\nformat = 'ascend'", InputError, "'ascend' takes int8 weights and activations"),
        (
            "[export]\nformat = 'ascend'\n[quantize]\nbits = 4",
            InputError,
            "'ascend' takes int8 weights and activations",
        ),
        ("[quantize]\nbits = 3", InputError, r"\[quantize\]: bits: 3"),
        ("[quantize]\nactivations = 'int8'", InputError, "int8 activations need"),
        ("[quantize]\ncalibration = ['a=b']", InputError, "'b' is not a number"),
    ],
)
def test_what_only_all_keys_together_tell(
    tmp_path: Path, text: str, error: type[DsconvError], words: str
) -> None:
    recipe = loaded(tmp_path, HEAD + text)
    with pytest.raises(error, match=words) as caught:
        recipe.check()
    assert "mine.toml" in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("x = " + "{a = " * 5000, "not valid TOML|nested too deeply"),
        ("a." * 5000 + "b = 1", "unknown key"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("[verify]\nmax_kl = 1" + "0" * 400, "verify.max_kl"),
        ("[verify]\nmax_kl = 1e999", "verify.max_kl"),
        ("[verify]\nmax_kl = nan", "verify.max_kl"),
        ("[quantize]\ncalibration_tokens = 1" + "0" * 30, "quantize.calibration_tokens"),
        ("x = 2020-99-99", "not valid TOML"),
    ],
)
def test_a_hostile_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'description = "d"\nsource = "s"\n{text}\n')
    start = time.perf_counter()
    with pytest.raises(InputError, match=words):
        load_recipe(str(path))
    assert time.perf_counter() - start < 2


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_recipe(str(tmp_path / "gone.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(str(binary))
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * 65_537)
    with pytest.raises(InputError, match="65537 bytes, limit 65536"):
        load_recipe(str(large))
    with pytest.raises(UsageError) as caught:
        load_recipe("r1-distill-qwen-7b-cpu-int")
    assert re.search("did you mean r1-distill-qwen-7b-cpu-int[48]", caught.value.hint)


# ---------------------------------------------------------------- --set


def test_settings_replace_and_add(tmp_path: Path) -> None:
    text = HEAD + "[quantize]\nbits = 4\n"
    settings = (
        "quantize.bits=8",
        "quantize.method=rtn",
        "quantize.symmetric=false",
        'quantize.calibration=["a b"]',
        "verify.max_kl=1e-3",
        "source=/some/where",
        "revision=1234567",
    )
    recipe = loaded(tmp_path, text, *settings)
    assert recipe.quantize is not None
    found = asdict(recipe.quantize)
    assert (found["bits"], found["method"], found["symmetric"]) == (8, "rtn", False)
    assert found["calibration"] == ("a b",)
    assert recipe.verify.max_kl == 1e-3
    assert (recipe.source, recipe.revision) == ("/some/where", "1234567")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("quantize.bits", "no value"),
        ("=4", "no value"),
        ("quantize.bits=7", "--set quantize.bits: 7 is not allowed; allowed: 3, 4"),
        ("quantize.bits=four", "'four' is not an integer"),
        ("quantize.bit=4", "--set quantize.bit: unknown key"),
        ("source.model=x", "'source' is no table"),
        ("quantize=4", "--set quantize: 4 is not a table"),
    ],
)
def test_a_setting_that_is_refused(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, HEAD, setting)
    assert words in caught.value.message
    assert "mine.toml" not in caught.value.message
