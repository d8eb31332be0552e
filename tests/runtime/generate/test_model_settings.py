"""Settings of generation_config.json: used, named, or refused; never in the way of a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from command_line import dsconv
from sampling_settings import LOOKING_BACK, hashable
from small_models import EOS, gpt2_checkpoint, write_checkpoint, write_json

from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.known_key import Use
from dsconv.convert.formats.onnx.genai_search import WITHOUT_WORD, search_settings
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.generate.generation_keys import GENERATION_KEYS
from dsconv.runtime.generate.model_settings import (
    OF_USERS,
    from_generation_config,
    remarks_on,
    wanted_answer,
)
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.generate.settings import RANGES
from dsconv.runtime.sessions.load import Loaded

NAME = "generation_config.json"


def reader(**data: Any) -> ConfigReader:
    return ConfigReader(data, NAME)


def loaded(data: dict[str, Any] | None, config: dict[str, Any] | None = None) -> Loaded:
    files = {} if data is None else {NAME: json.dumps(data).encode()}
    return Loaded(None, files, config or {}, "torch", "cpu")  # type: ignore[arg-type]


def test_the_table_knows_every_key_of_transformers() -> None:
    theirs = set(vars(transformers.GenerationConfig()))
    assert not theirs - GENERATION_KEYS.keys()


def test_what_the_table_calls_used_is_used() -> None:
    used = {key for key, known in GENERATION_KEYS.items() if known.use is Use.USED}
    others = {"do_sample", "eos_token_id", "bos_token_id", "stop_strings", "max_new_tokens"}
    fields = set(vars(Sampling())) - set(OF_USERS)
    assert used == fields | others
    for settings in LOOKING_BACK:
        ours = from_generation_config(reader(**settings))
        assert {key: getattr(ours, key) for key in settings} == {
            key: hashable(value) for key, value in settings.items()
        }


def test_every_value_that_is_named() -> None:
    named = {key: known for key, known in GENERATION_KEYS.items() if known.use is Use.NAMED}
    assert len(remarks_on(reader(**dict.fromkeys(named, "x")))) == len(named)
    for key, known in named.items():
        assert remarks_on(reader(**{key: None})) == ()
        for neutral in known.neutral:
            assert remarks_on(reader(**{key: neutral})) == ()
        said = remarks_on(reader(**{key: 3}))
        assert said[0].startswith(f"{NAME}: {key} = 3 is not applied: ")


def test_defaults_of_transformers_ask_for_nothing() -> None:
    defaults = transformers.GenerationConfig()._get_default_generation_params()
    assert remarks_on(reader(**defaults)) == ()
    assert from_generation_config(reader(**defaults)) == Sampling(top_k=50)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"do_sample": True, "top_k": -1}, Sampling(1.0)),
        ({"do_sample": True, "top_k": 0}, Sampling(1.0)),
        ({"do_sample": True, "top_k": 20.0}, Sampling(1.0, top_k=20)),
        ({"do_sample": True, "temperature": 0}, Sampling()),
        ({"do_sample": True, "temperature": 1, "min_p": 0.05}, Sampling(1.0, min_p=0.05)),
        ({"repetition_penalty": 2}, Sampling(repetition_penalty=2.0)),
        ({"suppress_tokens": None, "bad_words_ids": None}, Sampling()),
    ],
)
def test_values(data: dict[str, Any], expected: Sampling) -> None:
    assert from_generation_config(reader(**data)) == expected


@pytest.mark.parametrize(
    "data",
    [
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_p": 1.5},
        {"min_p": "a"},
        {"repetition_penalty": 0},
        {"no_repeat_ngram_size": -1},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [1]},
        {"sequence_bias": [[1, 2]]},
        {"suppress_tokens": 5},
        {"do_sample": "yes"},
    ],
)
def test_broken_values(data: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"{NAME}: {next(iter(data))}") as caught:
        from_generation_config(reader(**data))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"])
def test_what_the_user_gives_is_not_read_from_the_file(name: str) -> None:
    value = 7 if name == "top_k" else 0.5
    wanted = wanted_answer(loaded({name: "rubbish", "do_sample": True}), {name: value})
    assert getattr(wanted.sampling, name) == value


def test_the_option_that_replaces_a_broken_value_is_named() -> None:
    with pytest.raises(InputError) as caught:
        wanted_answer(loaded({"top_k": -7}), {})
    assert caught.value.hint == "correct the file; --top-k takes its place"


def test_lengths_and_stops() -> None:
    file = {"max_new_tokens": 77, "stop_strings": ["END", "\n\n"]}
    wanted = wanted_answer(loaded(file), {"max_tokens": None}, ["Q:"])
    assert (wanted.max_tokens, wanted.stop) == (77, ("Q:", "END", "\n\n"))
    assert wanted_answer(loaded(file), {"max_tokens": 5}).max_tokens == 5
    assert wanted_answer(loaded({"stop_strings": "x"}), {}).stop == ("x",)
    assert wanted_answer(loaded({}), {}).max_tokens == 1024


def test_without_the_file_what_config_json_says_counts() -> None:
    """As in models from before generation_config.json."""
    config = {"do_sample": True, "temperature": 0.3, "num_beams": 4, "hidden_size": 64}
    wanted = wanted_answer(loaded(None, config), {})
    assert wanted.sampling == Sampling(0.3)
    assert wanted.not_applied[0].startswith("config.json: num_beams = 4 is not applied")
    assert wanted_answer(loaded({}, config), {}).sampling == Sampling()


# ---------------------------------------------------------------- what other readers get


def test_search_of_genai() -> None:
    search, notes = search_settings(
        reader(do_sample=True, temperature=0.6, top_k=-1, repetition_penalty=1.1, min_p=0.1)
    )
    assert search == {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 0,
        "min_length": 0,
    }
    assert len(notes) == 1
    assert "min_p = 0.1: genai_config.json cannot say it" in notes[0]
    assert search_settings(reader(do_sample=True, temperature=0))[0]["do_sample"] is False
    said = {key for key in WITHOUT_WORD if key in RANGES} | set(search)
    assert set(RANGES) - set(OF_USERS) <= said


def test_no_sampling_setting_stops_a_command_that_does_not_sample(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    broken = {"eos_token_id": EOS, "do_sample": "maybe", "top_p": 7, "top_k": "x", "min_p": -1}
    write_json(model / NAME, broken)
    (tmp_path / "t.txt").write_text("some text to read " * 40)
    done = dsconv("export", model, "-o", tmp_path / "x")
    assert done.code == 0, done.err
    assert "top_p: 7 is outside" in done.err
    assert dsconv("quantize", model, "--method", "rtn", "-o", tmp_path / "q").code == 0
    assert (
        dsconv("export", tmp_path / "q", "--format", "native", "-o", tmp_path / "n.dsq").code == 0
    )
    options = ("--text", tmp_path / "t.txt", "--window", 64, "--max-tokens", 64)
    checked = dsconv("verify", tmp_path / "x", "--reference", model, *options)
    assert checked.code in (0, 1), checked.err
    refused = dsconv("run", model, "-p", "a")
    assert refused.code == 3
    assert "do_sample" in refused.err or "top_p" in refused.err


def test_genai_and_run_write_the_same_text(tmp_path: Path) -> None:
    """Greedy, with penalties, in the exported folder."""
    genai = pytest.importorskip("onnxruntime_genai")
    model = write_checkpoint(tmp_path / "m", torch_dtype="float32", seed=4)
    settings = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    write_json(model / NAME, {"bos_token_id": 256, "eos_token_id": EOS, **settings})
    exported = dsconv("export", model, "-o", tmp_path / "x", "--accuracy-level", 0)
    assert exported.code == 0, exported.err
    ran = dsconv("run", tmp_path / "x", "--raw", "-p", "aba", "--max-tokens", 30, "--json").json
    loaded_model = genai.Model(str(tmp_path / "x"))
    parameters = genai.GeneratorParams(loaded_model)
    parameters.set_search_options(max_length=34)
    generator = genai.Generator(loaded_model, parameters)
    generator.append_tokens(_tokens(model, "aba"))
    while not generator.is_done():
        generator.generate_next_token()
    text = [int(token) for token in generator.get_sequence(0)]
    assert text[4:][: len(ran["tokens"])] == ran["tokens"]


def _tokens(model: Path, text: str) -> list[int]:
    from dsconv.runtime.text.tokenizer import TextTokenizer

    checkpoint = open_checkpoint(str(model))
    return TextTokenizer(checkpoint.side_files, checkpoint.config).encode_prompt(text)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": -1},
            {"temp": 0.6, "top_p": 0.95, "top_k": 0},
        ),
        (
            {"repetition_penalty": 1.1, "temperature": 0.6},
            {"penalty_repeat": 1.1, "penalty_last_n": -1},
        ),
        ({"do_sample": True, "top_p": 7, "min_p": 0.05, "repetition_penalty": 1}, {"min_p": 0.05}),
        ({}, {}),
    ],
)
def test_llama_cpp_gets_them_from_a_gguf_file(
    settings: dict[str, Any], keys: dict[str, float], tmp_path: Path
) -> None:
    from gguf import GGUFReader

    model = gpt2_checkpoint(tmp_path / "m")
    write_json(model / NAME, {"eos_token_id": EOS, "bos_token_id": 256, **settings})
    assert dsconv("quantize", model, "--method", "rtn", "-o", tmp_path / "q").code == 0
    file = tmp_path / "m.gguf"
    done = dsconv("export", tmp_path / "q", "--format", "gguf", "-o", file)
    assert done.code == 0, done.err
    fields = GGUFReader(str(file)).fields
    found = {
        name.removeprefix("general.sampling."): field.contents()
        for name, field in fields.items()
        if name.startswith("general.sampling.")
    }
    assert found == pytest.approx(keys)
    back = open_checkpoint(str(file))
    read = wanted_answer(Loaded(None, back.side_files, back.config, "torch", "cpu"), {})  # type: ignore[arg-type]
    wanted = from_generation_config(reader(**{k: v for k, v in settings.items() if v != 7}))
    if "temp" in keys or not settings.get("do_sample"):
        assert read.sampling == wanted
