"""Greedy texts side by side: divergence, loops, thoughts; and the models that write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scripted_session import scripted, tokenizer_of
from small_models import TEMPLATE, VOCABULARY, write_checkpoint, write_json

from dsconv.errors import InputError
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.verify.free_running import (
    Text,
    built_in_prompts,
    compare_texts,
    ends_in_loop,
    first_divergence,
    write_texts,
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(str(write_checkpoint(tmp_path_factory.mktemp("free") / "m")))


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([], False),
        ([1] * 23, False),
        ([1] * 24, True),
        ([9, 8, *[1] * 24], True),
        ([*[1] * 24, 9], False),  # it got out again
        ([*range(100), *[5, 6, 7] * 8], True),
        ([*range(100), *[5, 6, 7] * 7], False),  # 21 tokens
        (list(range(64)) * 3, True),
        (list(range(64)) * 3 + [0], True),  # cut within the block
        (list(range(64)) * 2, False),
        (list(range(65)) * 3, False),  # longer than the rule looks
        (list(range(200)), False),
    ],
)
def test_the_rule_of_loops(tokens: list[int], loops: bool) -> None:
    assert ends_in_loop(tokens) is loops
    assert ends_in_loop(tuple(tokens)) is loops


@pytest.mark.parametrize(
    ("mine", "theirs", "index"),
    [
        ([1, 2, 3], [1, 2, 3], 99),
        ([1, 2, 3], [1, 5, 3], 1),
        ([4, 2], [1, 2], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [1], 0),
        ([], [], 99),
    ],
)
def test_first_divergence(mine: list[int], theirs: list[int], index: int) -> None:
    assert first_divergence(mine, theirs, 99) == index


def test_figures_of_texts() -> None:
    reference = [Text((1, 2, 3, 4), True, True), Text((5,) * 30, True, True)]
    artifact = [Text((1, 2, 9), True, False), Text((5,) * 30, True, True)]
    found = compare_texts(artifact, reference, 40)
    assert found.first_divergence == (2, 40)
    assert found.length_ratio == pytest.approx(33 / 34)
    assert (found.reference_loop_rate, found.artifact_loop_rate) == (0.5, 0.5)
    assert (found.reference_closed_rate, found.artifact_closed_rate) == (1.0, 0.5)
    assert (found.prompts, found.tokens_per_prompt) == (2, 40)


def test_a_model_that_never_thinks_has_no_closed_rate() -> None:
    text = [Text((1,), False, False)]
    assert compare_texts(text, text, 5).reference_closed_rate is None


def test_texts_come_from_the_chat_template_and_start_anew(loaded: Loaded) -> None:
    session, model = scripted(loaded, ["one", "two </think> three", "x" * 50])
    done: list[int] = []
    texts = write_texts(model, tokenizer_of(loaded), ["a", "b", "c"], 20, done.append)
    tokenizer = tokenizer_of(loaded)
    assert [tokenizer.decode(text.tokens) for text in texts] == [
        "one",
        "two </think> three",
        "x" * 20,
    ]
    assert [text.closed for text in texts] == [False, True, False]
    assert tokenizer.decode(session.prompts[1]) == "user: b\nassistant:"
    assert done == [1, 1, 1]


def test_thoughts_that_the_template_opens(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE + "<think>\n"}
    write_json(folder / "tokenizer_config.json", settings)
    model = load(str(folder))
    _, script = scripted(model, ["hm", "hm</think>4"])
    texts = write_texts(script, tokenizer_of(model), ["a", "b"], 20)
    assert [(text.thinks, text.closed) for text in texts] == [(True, False), (True, True)]


def test_a_model_agrees_with_itself(loaded: Loaded) -> None:
    prompts = built_in_prompts(2)
    texts = [write_texts(loaded, tokenizer_of(loaded), prompts, 12) for _ in range(2)]
    found = compare_texts(texts[0], texts[1], 12)
    assert found.first_divergence == (12, 12)
    assert found.length_ratio == 1


def test_logits_that_are_not_finite_are_refused(loaded: Loaded) -> None:
    session, model = scripted(loaded, ["a"])
    session._next = lambda: np.full(VOCABULARY, np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="NaN"):
        write_texts(model, tokenizer_of(loaded), ["a"], 4)


def test_the_built_in_prompts_are_of_several_kinds() -> None:
    prompts = built_in_prompts(8)
    assert len(set(prompts)) == 8
    assert any("\u4e00" <= character <= "\u9fff" for prompt in prompts for character in prompt)
    assert any("Python" in prompt for prompt in prompts)
