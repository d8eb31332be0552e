"""Texts until their end, against transformers' generate on one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from native_models import exported
from small_models import EOS, LLAMA, gpt2_checkpoint
from transformers import AutoModelForCausalLM

from dsconv.errors import UsageError
from dsconv.runtime.batches.open import open_batch
from dsconv.runtime.generate.settings import Sampling
from dsconv.runtime.harness.settings import WritingSettings
from dsconv.runtime.harness.writing import Task, cut, write
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.text.tokenizer import TextTokenizer

CONTEXT = 64
GREEDY = WritingSettings(Sampling(), 12, ())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "checkpoint"
    gpt2_checkpoint(folder, torch_dtype="float16", max_position_embeddings=CONTEXT, **LLAMA)
    exported(folder, folder.parent / "m.dsq")
    return folder


@pytest.fixture(scope="module", params=["m.dsq", "checkpoint"])
def loaded(request: pytest.FixtureRequest, checkpoint: Path) -> Loaded:
    return load(str(checkpoint.parent / request.param))


def written(loaded: Loaded, tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    return write(open_batch(loaded), tokenizer, tasks, CONTEXT)


def test_greedy_texts_are_those_of_transformers(loaded: Loaded, checkpoint: Path) -> None:
    """Prompts that begin alike, one that is too long and loses its beginning."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    shots = list(range(30))
    prompts = [[*shots, 40 + number] for number in range(4)] + [[9], list(range(70, 170))]
    tasks = [Task(prompt, replace(GREEDY, max_tokens=5 + i)) for i, prompt in enumerate(prompts)]
    found = written(loaded, tasks)
    for task, tokens in zip(tasks, found, strict=True):
        most = task.settings.max_tokens
        prompt = torch.tensor([task.tokens])[:, -(CONTEXT - most) :]
        text = model.generate(prompt, max_new_tokens=most, do_sample=False)[0].tolist()
        expected = text[prompt.shape[1] :]
        assert list(tokens) == expected[: expected.index(EOS) if EOS in expected else None]


def test_a_text_ends_where_the_task_says(loaded: Loaded) -> None:
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    whole = written(loaded, [Task([1, 2, 3], GREEDY)])[0]
    shown = tokenizer.decode(whole, skip_special=False)
    stop = shown[3:5]  # of two tokens or more
    tokens = written(loaded, [Task([1, 2, 3], replace(GREEDY, until=(stop, "never")))])[0]
    assert whole[: len(tokens)] == tokens
    assert stop in tokenizer.decode(tokens, skip_special=False)
    assert stop not in tokenizer.decode(tokens[:-1], skip_special=False)


def test_the_same_prompt_is_drawn_anew(loaded: Loaded) -> None:
    settings = replace(GREEDY, sampling=Sampling(temperature=1.5, seed=1))
    found = written(loaded, [Task([1, 2, 3], settings)] * 4)
    assert len(set(found)) > 1
    assert written(loaded, [Task([1, 2, 3], settings)] * 4) == found


def test_lengths(loaded: Loaded) -> None:
    tasks = [
        Task([1, 2, 3], replace(GREEDY, max_tokens=0)),
        Task([1, 2, 3], replace(GREEDY, max_length=5)),
        Task([1, 2, 3], replace(GREEDY, max_length=2)),
    ]
    assert [len(tokens) for tokens in written(loaded, tasks)] == [0, 2, 0]
    with pytest.raises(UsageError, match="64 tokens to write, the context has 64"):
        written(loaded, [Task([1], replace(GREEDY, max_tokens=64))])


@pytest.mark.parametrize(
    ("text", "think_end", "shown"),
    [
        ("a b\n\nc\nd", None, "a b"),
        ("think\n\nmore</think>\n\nThe answer.\n\nQ:", "</think>", "The answer."),
        ("no thoughts end here", "</think>", "no thoughts end here"),
    ],
)
def test_what_is_judged(text: str, think_end: str | None, shown: str) -> None:
    assert cut(text, ("\n\n", "Q:"), think_end) == shown
