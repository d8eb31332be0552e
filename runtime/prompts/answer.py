"""Answers to many prompts, in the order in which they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import DsconvError
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


class Answering:
    """One answer on its way."""

    def __init__(self, row: PromptRow, written: WrittenText) -> None:
        self._row, self._written = row, written

    def take(self, token: int, logits: NDArray[np.float32]) -> StopReason | None:
        return self._written.take(token)

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """
        Raises:
            What ended the answer and is not the row's fault: it may be answered later.
        """
        done = outcome.generation
        if done is None:
            if not isinstance(outcome.error, DsconvError):
                raise outcome.error or RuntimeError("no answer, and no reason")
            return failed(self._row, outcome.error.message)
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


def answer_rows(
    asking: Asking, batch: Batch, rows: Iterable[PromptRow], on_answer: OnAnswer
) -> None:
    """Every row's answer, or why there is none, as `on_answer` is told it: a dict for JSON.

    Raises:
        What ends the run, and is not of a row: no memory, a broken artifact. Answers that were told
        stay.
    """
    scheduler, tokenizer = Scheduler(batch, unattended(batch)), _tokenizer(asking.loaded)
    most = AHEAD * batch.max_sequences
    for row in rows:
        if row.error is not None:
            on_answer(failed(row, row.error))
            continue
        while scheduler.waiting >= most:
            scheduler.step()
        try:
            _submit(asking, tokenizer, scheduler, row, on_answer)
        except DsconvError as error:
            on_answer(failed(row, error.message))
    scheduler.run()


def _submit(
    asking: Asking,
    tokenizer: TextTokenizer,
    scheduler: Scheduler,
    row: PromptRow,
    on_answer: OnAnswer,
) -> None:
    own = {**asking.given, **row.settings}
    wanted = wanted_answer(asking.loaded, own, (*asking.stop, *row.stop))
    tokens, inside = _prompt(asking, tokenizer, row)
    answering = Answering(row, WrittenText(tokenizer, tokens, wanted.stop, inside))
    stop_ids = (*tokenizer.stop_ids, *stop_tokens(tokenizer, wanted.stop))
    scheduler.submit(
        Request(tokens, wanted.max_tokens, wanted.sampling, stop_ids, answering.take),
        partial(_done, answering, on_answer),
    )


def _done(answering: Answering, on_answer: OnAnswer, outcome: Outcome) -> None:
    on_answer(answering.result(outcome))


def _prompt(asking: Asking, tokenizer: TextTokenizer, row: PromptRow) -> tuple[list[int], bool]:
    """-> (tokens, is `<think>` open at their end)."""
    messages = list(row.messages)
    if asking.system is not None and messages[0].role != "system":
        messages.insert(0, Message("system", asking.system))
    template = None if asking.raw else chat_template(asking.loaded.side_files)
    if template is None:
        text = "\n".join(message.content for message in messages)
        tokens, inside = tokenizer.encode_prompt(text), opens_thinking(text)
    else:
        rendered = render_chat(template, messages, tokenizer.special_tokens)
        tokens, inside = tokenizer.encode_chat(rendered), opens_thinking(rendered)
    refuse_tokens_beyond(tokens, asking.loaded.session.vocabulary, "the prompt", tokenizer)
    return tokens, inside


def _tokenizer(loaded: Loaded) -> TextTokenizer:
    return TextTokenizer(loaded.side_files, loaded.config)
