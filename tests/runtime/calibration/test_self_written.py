"""Text that the model writes itself: the interpreter, the slots, the sampler, the prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from logits import random_tokens
from places import SHARED_DATA, needs_shared_data
from reference_models import tiny_checkpoint
from small_models import TEMPLATE, write_checkpoint, write_json
from tokenizers import AddedToken, Tokenizer

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.forward import batch_generation as generating_ops
from dsconv.convert.forward.batch_generation import WeightPieces
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchModel
from dsconv.convert.forward.workers import Workers
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.calibration.self_written import (
    CONTINUATION,
    Layout,
    Prompt,
    SlotSampler,
    Writer,
    WriterLimits,
    built_in_prompts,
    built_in_texts,
    conversations_of,
    draw,
    plan_layout,
    prompts_of,
    self_windows,
    why_it_cannot_write,
    write_streams,
)
from dsconv.runtime.generate.sampling import Sampling, filtered
from dsconv.runtime.text.tokenizer import TextTokenizer

GREEDY = Sampling()


def writer_of(
    checkpoint: Checkpoint, layout: Layout, stop_ids: Sequence[int] = (), hold: bool = True
) -> Writer:
    return Writer(checkpoint, WeightPieces(checkpoint, torch.float32, hold), layout, stop_ids)


def asked(prompts: Sequence[Sequence[int]]) -> list[Prompt]:
    return [Prompt(tuple(prompt)) for prompt in prompts]


def documents_of(
    model: TorchModel, stream: Sequence[int], prompts: Sequence[list[int]], stop: int, limit: int
) -> list[list[int]]:
    """What a stream should be by the reference, token by token: as many documents as it takes."""
    documents, rest = [], list(stream)
    while rest:
        document = list(next(prompt for prompt in prompts if prompt[0] == rest[0]))
        written, cache = len(document), KeyValueCache()
        logits = model.forward(document, cache)[-1]
        while len(document) < min(limit, len(rest)) and stop not in document[written:]:
            document.append(int(logits.argmax()))
            logits = model.forward(document[-1:], cache)[-1]
        document = document[: len(rest)]
        documents.append(document)
        rest = rest[len(document) :]
    return documents


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_slots_write_what_the_reference_writes(
    family: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating_ops, "PIECE_WEIGHTS", 3000)  # many pieces, across matrices
    path = tiny_checkpoint(tmp_path / "model", family, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(str(path))
    prompts = [[20 + i, *random_tokens(2 + i, 160, i)] for i in range(12)]
    layout = Layout(slots=4, slot_tokens=40, document_tokens=25)
    endless = write_streams(writer_of(checkpoint, layout), asked(prompts), GREEDY, 1)
    stop = endless[1][12]
    prompts[0] = [20, stop, 30, 31]  # where it ends nothing
    streams = write_streams(writer_of(checkpoint, layout, [stop]), asked(prompts), GREEDY, 2)
    assert [len(stream) for stream in streams] == [40] * 4
    model = TorchModel.load(checkpoint)
    found = [documents_of(model, stream, prompts, stop, 25) for stream in streams]
    assert [[token for part in parts for token in part] for parts in found] == streams
    assert found[1][0][-1] == stop
    assert len(found[1][0]) <= 13
    assert len({parts[1][0] for parts in found}) == 4  # every slot went on with another prompt


@needs_shared_data
def test_a_trained_model_writes_stories_as_the_reference_does() -> None:
    checkpoint = open_checkpoint(str(SHARED_DATA / "models" / "tinystories-656k"))
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    starts = ("One day, a dog", "Lily had a red ball.", "The sun was", "Tom said:", "It was dark")
    prompts = [tokenizer.encode_prompt(text) for text in starts]
    layout = Layout(slots=3, slot_tokens=300, document_tokens=512)
    writer = writer_of(checkpoint, layout, tokenizer.stop_ids)
    streams = write_streams(writer, asked(prompts), GREEDY, 1)
    model = TorchModel.load(checkpoint)
    end = tokenizer.stop_ids[0]
    for stream in streams:
        border = stream.index(end) + 1 if end in stream else len(stream)
        for document in (stream[:border], stream[border:]):
            prompt = next((p for p in prompts if document[: len(p)] == p), document)
            best = model.forward(document).argmax(-1).tolist() if document else []
            assert best[len(prompt) - 1 : -1] == document[len(prompt) :]
    assert any(end in stream[:-20] for stream in streams)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model with bytes for tokens and a chat template."""
    return open_checkpoint(str(write_checkpoint(tmp_path_factory.mktemp("talker") / "model")))


def test_windows_have_their_length_for_any_threads_and_memory(talker: Checkpoint) -> None:
    expected = self_windows(talker, 5, 40, threads=1)
    assert [len(window) for window in expected] == [40] * 5
    assert self_windows(talker, 5, 40, threads=2) == expected
    assert self_windows(talker, 5, 40, threads=2, limits=WriterLimits(held=0)) == expected


def test_progress_counts_the_tokens(talker: Checkpoint) -> None:
    counts: list[int] = []
    self_windows(talker, 3, 16, 1, counts.append)
    assert sum(counts) == 48


def test_large_models_write_nothing(talker: Checkpoint) -> None:
    tokenizer = TextTokenizer(talker.side_files, talker.config)
    windows = self_windows(talker, 10_000, 64, 1, limits=WriterLimits(written=0))
    assert 100 < len(windows) < 10_000
    assert {len(window) for window in windows} == {64}
    said = tokenizer.decode([token for window in windows for token in window], False)
    assert built_in_texts()[0] in said
    assert built_in_prompts()[0][0].content in said
    assert self_windows(talker, 3, 64, 1, limits=WriterLimits(written=0)) == windows[:3]


def test_a_model_that_cannot_write_says_why(tmp_path: Path, talker: Checkpoint) -> None:
    assert why_it_cannot_write(talker) is None
    bare = tiny_checkpoint(tmp_path / "bare", "llama", tokenizer=False)
    reason = why_it_cannot_write(open_checkpoint(str(bare)))
    assert reason is not None
    assert "tokenizer.json" in reason


def test_streamed_weights_are_not_kept(talker: Checkpoint) -> None:
    writer = writer_of(talker, Layout(1, 3, 3), hold=False)
    write_streams(writer, asked([[1, 2]]), GREEDY, 1)
    assert not writer.weights.held_bytes
    held = writer_of(talker, Layout(1, 3, 3), hold=True)
    write_streams(held, asked([[1, 2]]), GREEDY, 1)
    matrices = talker.parameter_count - talker.decoder.table.vocabulary * 64
    assert 0.9 * 4 * matrices < held.weights.held_bytes <= 4 * matrices


@pytest.mark.parametrize(
    ("count", "size", "token_bytes", "context", "expected"),
    [
        (64, 512, 2**10, 4096, Layout(64, 512, 512)),
        (65, 512, 2**10, 4096, Layout(33, 1024, 1024)),
        (640, 512, 2**10, 4096, Layout(64, 5120, 1024)),
        (64, 512, 2**10, 256, Layout(64, 512, 256)),
        (64, 512, 2**16, 4096, Layout(16, 2048, 1024)),  # 16 documents of 1024 fill 1 GiB
        (64, 512, 2**21, 4096, Layout(1, 32768, 1024)),
        (1, 8, 2**10, 4096, Layout(1, 8, 8)),
    ],
)
def test_layouts_fit_into_memory(
    count: int,
    size: int,
    token_bytes: int,
    context: int,
    expected: Layout,
    talker: Checkpoint,
) -> None:
    config = talker.decoder.config
    changed = type(config)(**{**vars(config), "max_position_embeddings": context})
    assert plan_layout(changed, count, size, token_bytes) == expected


@needs_shared_data
def test_a_text_is_carried_on_a_little() -> None:
    checkpoint = open_checkpoint(str(SHARED_DATA / "models" / "tinystories-656k"))
    layout = Layout(slots=2, slot_tokens=60, document_tokens=512)
    prompts = [Prompt((5, 6, 7), limit=10), Prompt((8, 9), limit=None)]
    first, second = write_streams(writer_of(checkpoint, layout), prompts, GREEDY, 1)
    assert first[:3] == [5, 6, 7]
    assert first[10:13] == [5, 6, 7]  # ten tokens, then the next prompt of the cycle
    assert second[:2] == [8, 9]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.6, 0.95),
        Sampling(1.0, 0.3),
        Sampling(1.0, 0.5, 40),
        Sampling(2.0, 1.0, 7),
        Sampling(100.0, 0.999),
        Sampling(0.7),
    ],
    ids=str,
)
def test_draws_follow_the_sampler(sampling: Sampling) -> None:
    """Against the nucleus that sorting gives, on two kinds of distribution: a few loud tokens..."""
    for spread in (4.0, 0.1):  # ... and a flat one, whose nucleus is most of the vocabulary
        logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * spread
        tokens, chances = filtered(logits.numpy(), sampling)
        wanted = np.zeros(60)
        wanted[tokens] = chances
        random, count = torch.Generator().manual_seed(2), 20000
        drawn = draw(logits.expand(count, 60), sampling, random)
        found = np.bincount(drawn, minlength=60) / count
        assert not found[wanted == 0].any()
        np.testing.assert_array_less(
            np.abs(found - wanted), 5 * np.sqrt(wanted / count) + 2 / count
        )


def test_slots_draw_apart_and_the_same_for_any_threads() -> None:
    logits = torch.zeros(20, 5000)
    drawn = []
    for threads in (1, 2):
        with Workers(threads) as workers:
            drawn.append(SlotSampler(Sampling(temperature=1.0, seed=5), 20).choose(logits, workers))
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 15


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_are_refused(bad: float) -> None:
    logits = torch.zeros(2, 8)
    logits[1, 3] = bad
    with Workers(1) as workers, pytest.raises(InputError, match="NaN or infinity"):
        SlotSampler(Sampling(1.0), 2).choose(logits, workers)


def test_the_prompts_cover_their_topics() -> None:
    conversations = built_in_prompts()
    assert len(conversations) >= 60
    first = [conversation[0].content for conversation in conversations]
    assert len(set(first)) == len(first)
    assert all(conversation[-1].role == "user" for conversation in conversations)
    assert sum(len(conversation) > 1 for conversation in conversations) >= 10
    # Every five of them hold every topic, among them Chinese: a few slots get a bit of all.
    for start in range(0, 60, 5):
        text = "".join(first[start : start + 5])
        assert any("一" <= mark <= "鿿" for mark in text)


def with_template(folder: Path, template: str | None, think: bool) -> Checkpoint:
    path = write_checkpoint(folder)
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template")
    write_json(
        path / "tokenizer_config.json",
        settings if template is None else {**settings, "chat_template": template},
    )
    if think:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
        tokenizer.save(str(path / "tokenizer.json"))
    return open_checkpoint(str(path))


@pytest.mark.parametrize(
    ("ending", "think", "expected"),
    [
        ("assistant:{{ '<think>\\n' }}", True, "assistant:<think>\n"),
        ("{# </think> #}assistant:", True, "assistant:<think>\n"),
        (
            "assistant:{{ '<think>\\n\\n</think>\\n\\n' }}",
            True,
            "assistant:<think>\n\n</think>\n\n",
        ),
        ("{# </think> #}assistant:", False, "assistant:"),
        ("assistant:", True, "assistant:"),
    ],
)
def test_reasoning_models_are_made_to_think(
    ending: str, think: bool, expected: str, tmp_path: Path
) -> None:
    template = TEMPLATE.replace("assistant:", ending)
    checkpoint = with_template(tmp_path / "model", template, think)
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    conversations = conversations_of(checkpoint, tokenizer)
    for tokens, messages in zip(conversations, built_in_prompts(), strict=True):
        text = tokenizer.decode(tokens, skip_special=False)
        said = "".join(f"{message.role}: {message.content}\n" for message in messages)
        assert text == f"<s>{said}{expected}"


def test_without_a_template_the_prompts_are_plain(tmp_path: Path) -> None:
    checkpoint = with_template(tmp_path / "model", None, think=True)
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    first = conversations_of(checkpoint, tokenizer)[0]
    assert tokenizer.decode(first, False) == f"<s>{built_in_prompts()[0][0].content}\n"
    assert len(self_windows(checkpoint, 1, 16, 1)[0]) == 16


def test_texts_and_conversations_take_turns(talker: Checkpoint) -> None:
    tokenizer = TextTokenizer(talker.side_files, talker.config)
    texts, prompts = built_in_texts(), prompts_of(talker, tokenizer)
    assert len(set(texts)) == len(texts) >= 30
    assert len(prompts) == len(texts) + len(built_in_prompts())
    for place, text in enumerate(texts):
        prompt = prompts[2 * place]
        assert tokenizer.decode(list(prompt.tokens), False) == f"<s>{text}"
        assert prompt.limit == len(prompt.tokens) + CONTINUATION
        assert prompts[2 * place + 1].limit is None


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    big = tiny_checkpoint(tmp_path / "big", "llama", vocab_size=400)
    small = tiny_checkpoint(tmp_path / "small", "llama", vocab_size=100)
    shutil.copy(write_checkpoint(tmp_path / "bytes") / "tokenizer.json", small / "tokenizer.json")
    (small / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json gives token"):
        self_windows(open_checkpoint(str(small)), 1, 16, 1)
    assert self_windows(open_checkpoint(str(big)), 1, 16, 1)
