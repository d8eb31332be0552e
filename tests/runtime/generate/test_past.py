"""What the text so far does to logits, and every filter, against transformers' own processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from reference_models import tiny_model
from sampling_settings import LOOKING_BACK, hashable

from dsconv.errors import InputError
from dsconv.runtime.generate.past import Past
from dsconv.runtime.generate.sampling import Sampler, Sampling, filtered

SIZE = 300
ENDS = (7, 9)
FILTERS: list[dict[str, float]] = [
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"temperature": 1.5, "min_p": 0.05},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "typical_p": 0.3},
    {"temperature": 1.3, "typical_p": 0.95, "top_k": 100},
    {"temperature": 2.0, "epsilon_cutoff": 3e-3},
    {"temperature": 2.0, "epsilon_cutoff": 0.9},
    {"temperature": 1.0, "eta_cutoff": 2e-3},
    {"temperature": 0.5, "eta_cutoff": 0.3},
    {
        "temperature": 0.9, "top_k": 80, "top_p": 0.97, "min_p": 1e-3, "typical_p": 0.9,
        "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3,
    },
]  # fmt: skip


def ours_of(settings: dict[str, Any], **more: Any) -> Sampling:
    return Sampling(**{key: hashable(value) for key, value in settings.items()}, **more)


def logits_of(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, SIZE).astype(np.float32)


def processors(settings: dict[str, Any], prompt: int, samples: bool) -> Any:
    """transformers' list for these settings, as `generate` builds it."""
    config = transformers.GenerationConfig(
        do_sample=samples, eos_token_id=list(ENDS), top_k=settings.get("top_k", 0),
        **{key: value for key, value in settings.items() if key != "top_k"},
    )  # fmt: skip
    model = tiny_model("llama", vocab_size=SIZE, eos_token_id=list(ENDS))
    model._prepare_special_tokens(config, device="cpu")
    if config.min_new_tokens is not None:  # as `_prepare_generated_length` does
        config.min_length = config.min_new_tokens + prompt
    return model._get_logits_processor(config, input_ids_seq_length=prompt, device="cpu")


@pytest.mark.parametrize("settings", LOOKING_BACK, ids=str)
def test_logits_become_those_of_transformers(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    prompt = [int(token) for token in rng.integers(1, 6, 4)]
    theirs, past = processors(settings, len(prompt), False), Past(ours_of(settings), prompt, ENDS)
    text = list(prompt)
    for step in range(12):
        logits = logits_of(step)
        scores = torch.from_numpy(logits.copy())[None]
        wanted = theirs(torch.tensor([text]), scores)[0].numpy()
        np.testing.assert_array_equal(past.adjusted(logits), wanted)
        np.testing.assert_array_equal(logits, logits_of(step))  # not changed in place
        token = int(rng.integers(1, 6))
        past.append(token)
        text.append(token)


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("more", [{}, {"suppress_tokens": list(range(0, 200, 2))}], ids=str)
def test_filters_keep_what_transformers_keeps(
    settings: dict[str, Any], more: dict[str, Any]
) -> None:
    for seed in range(20):
        logits, everything = logits_of(seed), {**settings, **more}
        theirs = processors(everything, 1, True)
        scores = theirs(torch.tensor([[1]]), torch.from_numpy(logits.astype(np.float64))[None])[0]
        kept = torch.isfinite(scores).nonzero()[:, 0].tolist()
        sampling = ours_of(everything)
        tokens, probabilities = filtered(Past(sampling, [1]).adjusted(logits), sampling)
        order = np.argsort(tokens)
        assert tokens[order].tolist() == kept
        np.testing.assert_allclose(
            probabilities[order], scores.softmax(-1)[kept].numpy(), rtol=1e-6
        )


def test_greedy_texts_are_those_of_generate() -> None:
    """The whole loop, on a model of transformers."""
    from dsconv.runtime.generate.generate import complete

    settings = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3, "suppress_tokens": [11]}
    model = tiny_model("llama", vocab_size=SIZE)
    prompt = [3, 4, 5, 3, 4]
    with torch.no_grad():
        wanted = model.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None,
            pad_token_id=0, **settings,
        )[0, len(prompt):].tolist()  # fmt: skip

    class Plain:
        vocabulary, context_length, position = SIZE, 512, 0

        def __init__(self) -> None:
            self.text: list[int] = []

        def prefill(self, tokens: list[int]) -> NDArray[np.float32]:
            self.text += tokens
            with torch.no_grad():
                return model(torch.tensor([self.text])).logits[0, -1].numpy()

        def decode(self, token: int) -> NDArray[np.float32]:
            return self.prefill([token])

    ours = complete(Plain(), prompt, Sampler(ours_of(settings)), (), 40)  # type: ignore[arg-type]
    assert list(ours.tokens) == wanted


def test_what_stands_before_the_prompt_counts() -> None:
    sampler = Sampler(Sampling(no_repeat_ngram_size=2), before=[1, 2])
    sampler.begin([3, 1], ())
    logits = np.zeros(5, np.float32)
    logits[2], logits[4] = 9, 8
    assert sampler.choose(logits) == 4


def test_settings_that_leave_no_token() -> None:
    sampler = Sampler(Sampling(temperature=1, suppress_tokens=tuple(range(5))))
    with pytest.raises(InputError, match="forbid every token"):
        sampler.choose(np.zeros(5, np.float32))


def test_tokens_that_the_model_does_not_have_are_nothing() -> None:
    settings = ours_of(
        {"suppress_tokens": [400], "bad_words_ids": [[400]], "repetition_penalty": 2.0}
    )
    past = Past(settings, [400, 1])
    assert past.adjusted(np.ones(5, np.float32)).tolist() == [1, 0.5, 1, 1, 1]
