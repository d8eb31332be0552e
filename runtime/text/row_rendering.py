"""Rows to the text that a model was trained on: conversations by its chat template, in batches.

The template is a stranger's program. One process renders a batch of rows within limits of time and
memory; a row that the template refuses is told apart from a template that exceeds its limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsconv.convert.files import limits
from dsconv.errors import InputError

from .bounded_call import BoundReached, bounded_call
from .chat_template import ESCAPED_BYTES, HINT, chat_template
from .row_forms import Conversation, PlainText
from .thinking import CLOSE, OPEN, opens_thinking, split_thinking
from .tokenizer import TextTokenizer
from .turns import Turn

ROW_SECONDS = 0.01  # for every row of a batch, beside the limit of one
ROW_CHARACTERS = 16_384  # that a template may add to one, beside the limit of a batch
BATCH_CHARACTERS = 1 << 20
WORD = re.compile(r"[^\W_][\w ]{0,80}")


@dataclass(frozen=True)
class Rendered:
    """text, or why there is none; left_out: roles whose turns the template leaves out.

    limit: the template exceeds its limits, and would go on doing so.
    """

    text: str = ""
    reason: str = ""
    left_out: tuple[str, ...] = ()
    limit: bool = False


@dataclass(frozen=True)
class RowRenderer:
    """template: None for a model without: the turns' words, one below the other."""

    template: str | None
    special_tokens: Mapping[str, str]

    @classmethod
    def of_model(cls, side_files: Mapping[str, bytes], tokenizer: TextTokenizer) -> RowRenderer:
        """Raises InputError: the template's file is broken, or too large."""
        template = chat_template(side_files)
        if template is not None and len(template) > limits.TEMPLATE_CHARACTERS:
            size, most = len(template), limits.TEMPLATE_CHARACTERS
            raise InputError(f"chat template: {size} characters, limit {most}", HINT)
        return cls(template, tokenizer.special_tokens)

    def render(self, rows: Sequence[PlainText | Conversation]) -> list[Rendered]:
        """One for each row, up to one at which the template exceeds its limits."""
        chats = [row for row in rows if isinstance(row, Conversation)]
        texts = iter(self._render_chats(chats))
        found = []
        for row in rows:
            found.append(Rendered(row.text) if isinstance(row, PlainText) else next(texts))
            if found[-1].limit:
                break
        return found

    def _render_chats(self, chats: Sequence[Conversation]) -> list[Rendered]:
        if self.template is None:
            return [Rendered(_plain(chat)) for chat in chats]
        found: list[Rendered] = []
        batch: list[Conversation] = []
        size = 0
        for chat in chats:
            if batch and size + _size(chat) > BATCH_CHARACTERS:
                found += self._render_batch(batch)
                batch, size = [], 0
                if found[-1].limit:
                    return found
            batch.append(chat)
            size += _size(chat)
        return found + (self._render_batch(batch) if batch else [])

    def _render_batch(self, chats: Sequence[Conversation]) -> list[Rendered]:
        given = sum(map(_size, chats))
        characters = limits.TEMPLATE_OUTPUT + given + ROW_CHARACTERS * len(chats)

        def render_all() -> str:
            found = list(self._render_some(chats))
            return json.dumps([vars(one) for one in found], ensure_ascii=False)

        try:
            text = bounded_call(
                render_all,
                limits.TEMPLATE_SECONDS + ROW_SECONDS * len(chats),
                limits.TEMPLATE_MEMORY + 64 * given,
                ESCAPED_BYTES * characters,
            )
        except BoundReached as error:
            if len(chats) == 1:
                return [Rendered(reason=f"chat template: {error}", limit=True)]
            return self._one_by_one(chats)
        found = [Rendered(**one) for one in json.loads(text)]
        return [replace(one, left_out=tuple(one.left_out)) for one in found]

    def _render_some(self, chats: Sequence[Conversation]) -> Iterator[Rendered]:
        """Up to one that reaches a limit."""
        for chat in chats:
            found = self._render(chat)
            yield found
            if found.limit:
                return

    def _one_by_one(self, chats: Sequence[Conversation]) -> list[Rendered]:
        """Which row it is; the first one alone tells whether it is all of them."""
        found: list[Rendered] = []
        middle = 1 + (len(chats) - 1) // 2
        for part in (chats[:1], chats[1:middle], chats[middle:]):
            if part and not (found and found[-1].limit):
                found += self._render_batch(part)
        return found

    def _render(self, chat: Conversation) -> Rendered:
        from .template_sandbox import Refused

        try:
            text = self._with_thoughts(chat)
        except Refused as error:
            return Rendered(reason=f"the chat template refuses it: {error}")
        except BoundReached as error:
            return Rendered(reason=f"chat template: {error}", limit=True)
        if not text.strip():
            return Rendered(reason="the chat template makes nothing of it")
        missing = {str(turn["role"]) for turn in chat.turns if not _shows(text, turn)}
        return Rendered(text, left_out=tuple(sorted(missing)))

    def _with_thoughts(self, chat: Conversation) -> str:
        """As the model writes it: templates of reasoning models leave thoughts out of what was
        said before, and the last answer would be without them.
        """
        text = self._by_template(chat, list(chat.turns), False)
        *before, last = chat.turns
        thoughts, words = thoughts_of(last)
        if not thoughts.strip() or thoughts.strip() in text or not before:
            return text
        opened = self._by_template(chat, before, True)
        begin = "" if opens_thinking(opened) else f"{OPEN}\n"
        end = self.special_tokens.get("eos_token", "")
        return f"{opened}{begin}{thoughts.strip()}\n{CLOSE}\n\n{words.strip()}{end}"

    def _by_template(self, chat: Conversation, turns: list[Turn], goes_on: bool) -> str:
        from .template_sandbox import render

        assert self.template is not None
        if "developer" not in self.template:
            turns = [turn | _as_system(turn) for turn in turns]
        variables: dict[str, Any] = {**self.special_tokens, "documents": None}
        variables |= {"tools": list(chat.tools) if chat.tools else None, "messages": turns}
        characters = limits.TEMPLATE_OUTPUT + _size(chat)
        return render(self.template, {**variables, "add_generation_prompt": goes_on}, characters)


def thoughts_of(turn: Turn) -> tuple[str, str]:
    """(thoughts, words) of an answer."""
    content = turn.get("content") or ""
    if turn["role"] != "assistant" or not isinstance(content, str):
        return "", content
    if isinstance(turn.get("reasoning_content"), str):
        return turn["reasoning_content"], content
    return split_thinking(content, False) if CLOSE in content else ("", content)


def _as_system(turn: Turn) -> Turn:
    """OpenAI's later name for it, which few templates know."""
    return {"role": "system"} if turn["role"] == "developer" else {}


def _shows(text: str, turn: Turn) -> bool:
    """Whether its longest run of words is there; what stands between them may be escaped."""
    runs = WORD.findall(thoughts_of(turn)[1] or "")
    return not runs or max(runs, key=len).strip() in text


def _plain(chat: Conversation) -> str:
    parts = []
    for turn in chat.turns:
        words = [turn["content"]] if turn.get("content") else []
        if isinstance(turn.get("reasoning_content"), str):
            words.insert(0, f"{OPEN}\n{turn['reasoning_content']}\n{CLOSE}")
        if turn.get("tool_calls"):
            words.append(json.dumps(turn["tool_calls"], ensure_ascii=False))
        parts.append("\n".join(words))
    return "\n".join(parts) + "\n"


def _size(chat: Conversation) -> int:
    """Characters, of what is beside the words too."""
    beside = [turn[key] for turn in chat.turns for key in turn if key not in ("role", "content")]
    words = sum(len(turn.get("content") or "") for turn in chat.turns)
    return words + (len(json.dumps([beside, chat.tools])) if beside or chat.tools else 0)
