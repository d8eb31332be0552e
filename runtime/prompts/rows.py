"""What a row of a file of prompts asks, and the settings that it brings along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsconv.errors import InputError
from dsconv.runtime.generate.settings import RANGES
from dsconv.runtime.text.chat_template import Message
from dsconv.runtime.text.row_forms import PlainText, read_row
from dsconv.runtime.text.rows import Unusable, rows_of
from dsconv.runtime.text.text_file import open_text

ASKED = ("prompt", "question", "problem", "query", "instruction", "input")
NAMES = ("id", "custom_id", "idx", "index", "uid")
BODY = "body"  # of a row in OpenAI's batches
TOKENS = ("max_completion_tokens", "max_tokens", "max_new_tokens")
SETTINGS = tuple(name for name in RANGES if name not in ("typical_p",))
FORMS = "prompt; question; messages that end with a user's"
# What would change the answer and is not done for a row: named instead of dropped.
REFUSED = (
    *("tools", "functions", "response_format", "logit_bias"),
    *("grammar", "json_schema", "best_of", "suffix", "prefix"),
)


@dataclass(frozen=True)
class PromptRow:
    """messages: what is asked; a single user's one for a plain prompt. error: why nothing is."""

    index: int
    name: Any
    messages: tuple[Message, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    error: str | None = None


def prompt_rows(path: Path) -> list[PromptRow]:
    """One for every row that is not empty.

    Raises:
        InputError: it cannot be read, or no row can be used.
    """
    with open_text(path) as file:
        rows = rows_of(file)
        if rows is None:
            raise InputError(
                f"{path}: plain text, not rows of prompts",
                'use JSON lines as {"prompt": "…"}; one prompt as text goes to --prompt-file',
            )
        found = [row for index in range(len(rows)) if (row := _row(rows, index)) is not None]
        if not any(row.error is None for row in found):
            reason = found[0].error if found else "empty rows"
            where = rows.where(found[0].index) if found else "line 1"
            raise InputError(f"{path}: {where}: {reason}", f"rows may hold: {FORMS}")
        return found


def _row(rows: Any, index: int) -> PromptRow | None:
    try:
        value = rows.value(index)
    except Unusable as error:
        return None if error.blank else PromptRow(index, None, error=str(error))
    if value is None:
        return None
    name = next((value[key] for key in NAMES if key in value), None) if _is_row(value) else None
    try:
        asked = value.get(BODY) if _is_row(value) and isinstance(value.get(BODY), dict) else value
        settings, stop = settings_of(asked) if _is_row(asked) else ({}, ())
        return PromptRow(index, name, messages_of(asked), settings, stop)
    except Unusable as error:
        return None if error.blank else PromptRow(index, name, error=str(error))


def _is_row(value: Any) -> bool:
    return isinstance(value, dict)


def messages_of(value: Any) -> tuple[Message, ...]:
    """Raises Unusable: nothing is asked."""
    if isinstance(value, dict):
        texts = {key.lower(): item for key, item in value.items()}
        if not texts.get("messages") and not texts.get("conversations"):
            asked = next((texts[key] for key in ASKED if isinstance(texts.get(key), str)), None)
            if asked is not None and not texts.get("choices"):
                return _with_system(texts, asked)
    row = {"text": value} if isinstance(value, str) else value
    found = read_row(row)
    if isinstance(found, PlainText):
        return (Message("user", found.text),)
    if found.tools:
        raise Unusable("tools, which this command does not call")
    turns = list(found.turns)
    while turns and turns[-1]["role"] == "assistant":  # what a data set gives as the answer
        turns.pop()
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("no message of a user at its end", form=True)
    if not all(isinstance(turn.get("content"), str) for turn in turns):
        raise Unusable("a message without text")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _with_system(texts: Mapping[str, Any], asked: str) -> tuple[Message, ...]:
    if not asked.strip():
        raise Unusable("the prompt is empty", blank=True)
    added = texts.get("input") if texts.get("instruction") == asked else None
    asked = f"{asked}\n{added}" if isinstance(added, str) and added.strip() else asked
    system = texts.get("system")
    before = (Message("system", system),) if isinstance(system, str) and system else ()
    return (*before, Message("user", asked))


def settings_of(value: Mapping[str, Any]) -> tuple[dict[str, float], tuple[str, ...]]:
    """-> (settings by the names of `Sampling`, and max_tokens; texts that end the answer).

    Raises:
        Unusable: one that would change the answer and is not done here, or is no number.
    """
    for key in REFUSED:
        if value.get(key):
            raise Unusable(f"{key} is not applied by this command")
    if value.get("n") not in (None, 1):
        raise Unusable(f"n = {value['n']}: one answer per row; repeat the row with other seeds")
    found: dict[str, float] = {}
    for key in (*SETTINGS, *TOKENS):
        given = value.get(key)
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise Unusable(f"{key} is no number")
        found.setdefault("max_tokens" if key in TOKENS else key, given)
    stop = value.get("stop") or []
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else None
    if texts is None or not all(isinstance(text, str) and text for text in texts):
        raise Unusable("stop is no list of texts")
    return found, texts
