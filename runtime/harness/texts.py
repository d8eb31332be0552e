"""Text to tokens and back as lm-evaluation-harness' back end `hf` does it, and chats as text."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dsconv.errors import InputError, UsageError
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.tokenizer import TextTokenizer

from .options import HarnessOptions

# Put behind the last message, to find where it ends in the rendered text. A template that trims
# messages takes the blank away.
END_MARK, BLANK = "\ue000the message ends here\ue000", " "
logger = logging.getLogger(__name__)


class Texts:
    """The tokenizer and chat template of a model."""

    def __init__(self, loaded: Loaded, options: HarnessOptions) -> None:
        self.tokenizer = TextTokenizer(loaded.side_files, loaded.config)
        self._files = loaded.side_files
        self._options = options
        self._bos = self._beginning()

    def _beginning(self) -> list[int]:
        wanted = self._options.add_bos_token
        if wanted is None:
            return self.tokenizer.encode_prompt("")  # what its files say
        if not wanted:
            return []
        if self.tokenizer.bos_id is None:
            raise UsageError(
                "add_bos_token=True: the tokenizer has no token for the beginning of a text",
                "leave out add_bos_token",
            )
        return [self.tokenizer.bos_id]

    @property
    def end_id(self) -> int:
        """The token that ends a text."""
        name = self.tokenizer.special_tokens.get("eos_token")
        ids = self.tokenizer.encode(name) if name else []
        if len(ids) == 1:
            return ids[0]
        if not self.tokenizer.stop_ids:
            raise InputError(
                "the model names no token that ends a text",
                "name eos_token in tokenizer_config.json, and export again",
            )
        return self.tokenizer.stop_ids[0]

    @property
    def prefix_id(self) -> int:
        """What stands in front of a text without a context."""
        if self._options.prefix_token_id is not None:
            return self._options.prefix_token_id
        bos = self.tokenizer.bos_id
        return self.end_id if bos is None else bos

    @property
    def end_text(self) -> str:
        return self.tokenizer.decode([self.end_id], skip_special=False)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """None puts the beginning in front unless the text has it already, as a rendered chat."""
        if add_special_tokens is None:
            mark = self.tokenizer.decode([self.prefix_id], skip_special=False)
            add_special_tokens = not (mark and text.startswith(mark))
        return (self._bos if add_special_tokens else []) + self.tokenizer.encode(text)

    def template(self, name: str | None = None) -> str:
        """The chat template.

        Raises:
            UsageError: there is none.
        """
        if name not in (None, "default"):
            raise UsageError(f"chat template {name!r}: only the default is read", "name none")
        found = chat_template(self._files)
        if found is None:
            raise UsageError(
                "--apply_chat_template: the model has no chat template", "leave it out"
            )
        return found

    def render(self, turns: Sequence[Mapping[str, Any]], new_turn: bool) -> str:
        """A chat as text, up to where the model answers (`new_turn`), or goes on with the last
        turn. A template that refuses a system prompt gets none, as in the back end `hf`."""
        messages = [_message(turn) for turn in turns]
        try:
            return self._render(messages, new_turn)
        except InputError as error:
            without = [message for message in messages if message.role != "system"]
            if len(without) in (0, len(messages)):
                raise
            logger.warning("the chat template refuses the system prompt (%s): left out", error)
            return self._render(without, new_turn)

    def _render(self, messages: Sequence[Message], new_turn: bool) -> str:
        variables = {**self.tokenizer.special_tokens, **self._options.template_variables}
        template = self.template()
        if new_turn:
            return render_chat(template, messages, variables)
        last = Message(messages[-1].role, messages[-1].content + END_MARK + BLANK)
        text = render_chat(template, [*messages[:-1], last], variables, False)
        before, mark, after = text.rpartition(END_MARK)
        if not mark:
            raise InputError(
                "the chat template drops the end of the answer that the task begins with",
                "leave out --apply_chat_template, or use a task without a beginning",
            )
        return before if after.startswith(BLANK) else before.rstrip()

    @property
    def fingerprint(self) -> str:
        """A name that changes with the tokens or the chat template."""
        template = chat_template(self._files) or ""
        content = f"{self.tokenizer.to_json()}\0{template}\0{self._options.template_variables}"
        return hashlib.sha256(f"{content}{self._bos}".encode()).hexdigest()[:16]


def _message(turn: Mapping[str, Any]) -> Message:
    content = turn.get("content")
    if not isinstance(content, str):
        raise UsageError("a turn of the chat is not text", "use tasks of text")
    return Message(str(turn["role"]), content)
