"""Answers to many prompts, in the order in which they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError, UnsupportedError, UsageError
from dsconv.runtime.batches.batch import Batch
from dsconv.runtime.generate.generate import StopReason
from dsconv.runtime.generate.model_settings import wanted_answer
from dsconv.runtime.generate.written_text import WrittenText, stop_tokens
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.scheduling.run_all import unattended
from dsconv.runtime.scheduling.scheduler import Scheduler
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.thinking import opens_thinking
from dsconv.runtime.text.token_range import refuse_tokens_beyond
from dsconv.runtime.text.tokenizer import TextTokenizer

from .rows import PromptRow

# What a row itself can be wrong in: the same row fails again. Anything else is the machine's.
OF_THE_ROW = (InputError, UsageError)
AHEAD = 2  # requests waiting, for every sequence of the batch

Given = Mapping[str, float | None]
OnAnswer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Asking:
    """How all rows are answered, where they do not say otherwise.

    system: before rows that bring no system prompt. raw: no chat template.
    """

    loaded: Loaded
    given: Given
    stop: tuple[str, ...] = ()
    system: str | None = None
    raw: bool = False


class NoRoom(UnsupportedError):
    """The cache for keys and values is smaller than what a row needs; the model would take it."""


class Answering:
    """One answer on its way."""

    def __init__(self, row: PromptRow, written: WrittenText, batch: Batch) -> None:
        self._row, self._written, self._batch = row, written, batch

    def take(self, token: int, logits: NDArray[np.float32]) -> StopReason | None:
        return self._written.take(token)

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """Raises what the engine raised, and NoRoom: neither is an answer, nor the row's fault."""
        done = outcome.generation
        if done is None:
            assert outcome.error is not None
            if outcome.of_pass or not isinstance(outcome.error, OF_THE_ROW):
                raise outcome.error
            return failed(self._row, outcome.error.message)
        if done.stop_reason == "context" and self._batch.capacity < self._batch.context_length:
            raise no_room(self._row, done.prompt_tokens + len(done.tokens), self._batch)
        self._written.finish()
        return {
            "index": self._row.index,
            "id": self._row.name,
            "text": self._written.answer.strip(),
            "thinking": self._written.thinking.strip(),
            "tokens": list(done.tokens),
            "stop_reason": done.stop_reason,
            "stopped_by": self._written.stopped_by,
            "prompt_tokens": done.prompt_tokens,
            "generated_tokens": len(done.tokens),
        }


def failed(row: PromptRow, why: str) -> dict[str, Any]:
    return {"index": row.index, "id": row.name, "error": why}


def no_room(row: PromptRow, tokens: int, batch: Batch) -> NoRoom:
    return NoRoom(
        f"row {row.index + 1}: {tokens} tokens, the memory for keys and values holds "
        f"{batch.capacity}, the model's context {batch.context_length}",
        "free some memory, or use a machine with more, and run the same command again",
    )


def answer_rows(
    asking: Asking, batch: Batch, rows: Iterable[PromptRow], on_answer: OnAnswer
) -> None:
    """Every row's answer, or what is wrong with the row, as `on_answer` is told it: a dict for
    JSON.

    Raises:
        NoRoom: of a row, once all others are answered.
        What the engine raised, at once; answers until then were told.
    """
    asker = _Asker(asking, batch, on_answer)
    for row in rows:
        asker.ask(row)
    asker.finish()


class _Asker:
    """Keeps a scheduler busy."""

    def __init__(self, asking: Asking, batch: Batch, on_answer: OnAnswer) -> None:
        self._asking, self._batch, self._on_answer = asking, batch, on_answer
        self._scheduler = Scheduler(batch, unattended(batch))
        self._tokenizer = TextTokenizer(asking.loaded.side_files, asking.loaded.config)
        self._no_room: NoRoom | None = None

    def ask(self, row: PromptRow) -> None:
        if row.error is not None:
            self._on_answer(failed(row, row.error))
            return
        while self._scheduler.waiting >= AHEAD * self._batch.max_sequences:
            self._scheduler.step()
        try:
            self._submit(row)
        except NoRoom as error:
            self._no_room = self._no_room or error
        except OF_THE_ROW as error:
            self._on_answer(failed(row, error.message))

    def finish(self) -> None:
        self._scheduler.run()
        if self._no_room is not None:
            raise self._no_room

    def _submit(self, row: PromptRow) -> None:
        asking, tokenizer, batch = self._asking, self._tokenizer, self._batch
        own = {**asking.given, **row.settings}
        wanted = wanted_answer(asking.loaded, own, (*asking.stop, *row.stop))
        tokens, inside = _prompt(asking, tokenizer, row)
        if batch.capacity < len(tokens) <= batch.context_length:
            raise no_room(row, len(tokens), batch)
        answering = Answering(row, WrittenText(tokenizer, tokens, wanted.stop, inside), batch)
        stop_ids = (*tokenizer.stop_ids, *stop_tokens(tokenizer, wanted.stop))
        self._scheduler.submit(
            Request(tokens, wanted.max_tokens, wanted.sampling, stop_ids, answering.take),
            partial(self._done, answering),
        )

    def _done(self, answering: Answering, outcome: Outcome) -> None:
        try:
            answer = answering.result(outcome)
        except NoRoom as error:
            self._no_room = self._no_room or error
        else:
            self._on_answer(answer)


def _prompt(asking: Asking, tokenizer: TextTokenizer, row: PromptRow) -> tuple[list[int], bool]:
    """-> (tokens, is `<think>` open at their end)."""
    messages = list(row.messages)
    if asking.system is not None and messages[0].role != "system":
        messages.insert(0, Message("system", asking.system))
    template = None if asking.raw or row.raw else chat_template(asking.loaded.side_files)
    if template is None:
        text = "\n".join(message.content for message in messages)
        tokens, inside = tokenizer.encode_prompt(text), opens_thinking(text)
    else:
        rendered = render_chat(template, messages, tokenizer.special_tokens)
        tokens, inside = tokenizer.encode_chat(rendered), opens_thinking(rendered)
    refuse_tokens_beyond(tokens, asking.loaded.session.vocabulary, "the prompt", tokenizer)
    return tokens, inside
