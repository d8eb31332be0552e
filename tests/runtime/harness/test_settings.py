"""Generation arguments of tasks, as lm-evaluation-harness and transformers read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_models import write_checkpoint

from dsconv.errors import UsageError
from dsconv.runtime.generate.settings import Sampling
from dsconv.runtime.harness.settings import WritingSettings, read_settings
from dsconv.runtime.sessions.load import Loaded, load


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model that asks to be drawn from, as the DeepSeek-R1 distills do."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "m")
    wishes = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(wishes), encoding="utf-8")
    return load(str(folder))


def read(loaded: Loaded, **given: Any) -> WritingSettings:
    return read_settings(given, loaded, 256, 7)


OWN = {"top_p": 0.95, "repetition_penalty": 1.1, "seed": 7}  # of the model, and the run's seed


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.0}, {}),
        ({"do_sample": False, "temperature": 0.7}, {}),  # as lm-evaluation-harness decides
        ({"temperature": 0.0}, {}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True}, {"temperature": 0.6}),
        ({"do_sample": True, "temperature": 1}, {"temperature": 1}),
        ({"temperature": "0.7", "top_k": -1}, {"temperature": 0.7}),
        ({"top_k": 50, "top_p": 1.0}, {"top_k": 50, "top_p": 1.0}),
        ({"seed": 3, "repetition_penalty": 1.0}, {"seed": 3, "repetition_penalty": 1.0}),
        ({"num_beams": 1, "use_cache": True, "temperature": None}, {}),
    ],
)
def test_sampling(given: dict[str, Any], sampling: dict[str, Any], loaded: Loaded) -> None:
    assert read(loaded, **given).sampling == Sampling(**{**OWN, **sampling})


@pytest.mark.parametrize(
    ("given", "tokens", "until"),
    [
        ({}, 256, ()),
        ({"max_gen_toks": 8, "until": ["\n", ""]}, 8, ("\n",)),
        ({"max_new_tokens": 9, "until": "Q:"}, 9, ("Q:",)),
        ({"max_tokens": 10, "max_new_tokens": 9, "stop": ["a"], "until": ["b"]}, 9, ("b", "a")),
        ({"max_completion_tokens": 11.0, "until": None}, 11, ()),
    ],
)
def test_where_it_ends(
    given: dict[str, Any], tokens: int, until: tuple[str, ...], loaded: Loaded
) -> None:
    found = read(loaded, **given)
    assert (found.max_tokens, found.until) == (tokens, until)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is not offered"),
        ({"frequency_penalty": 0.5}, "frequency_penalty=0.5 is not offered"),
        ({"temprature": 0.5}, "'temprature' is not known"),
        ({"do_sample": True, "temperature": 0}, "temperature 0"),
        ({"do_sample": "yes"}, "neither True nor False"),
        ({"temperature": "hot"}, "temperature='hot' is not a number"),
        ({"temperature": -1}, "temperature -1 is outside"),
        ({"max_gen_toks": 2.5}, "max_gen_toks=2.5 is not a whole number"),
        ({"max_gen_toks": -1}, "not a whole number"),
        ({"until": [1]}, "not texts"),
        ({"top_k": 1.5}, "top_k=1.5 is not a whole number"),
    ],
)
def test_the_rest_is_refused_by_name(given: dict[str, Any], message: str, loaded: Loaded) -> None:
    with pytest.raises(UsageError) as caught:
        read(loaded, **given)
    assert message in caught.value.message


def test_every_prompt_draws_its_own(loaded: Loaded) -> None:
    settings = read(loaded, temperature=0.7)
    assert [settings.with_seed(number).seed for number in range(3)] == [7, 8, 9]
