"""A conversation of several turns with one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsconv.errors import UsageError
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.thinking import CLOSE, opens_thinking
from dsconv.runtime.text.tokenizer import TextTokenizer

from .answer import Answer, Wanted, Writer
from .draft import Draft
from .written_text import Emit


class Chat:
    """Remembers what was said, and keeps in the session's cache what the next prompt begins with.

    Raises:
        UsageError: the model has no chat template.
    """

    def __init__(
        self, loaded: Loaded, system: str | None, wanted: Wanted, draft: Draft | None = None
    ) -> None:
        template = chat_template(loaded.side_files)
        if template is None:
            raise UsageError(
                "a chat needs a chat template, which this model does not have",
                "leave out --chat, or use the instruction-tuned model",
            )
        self._loaded, self._wanted, self._template = loaded, wanted, template
        self._draft = draft
        self._tokenizer = TextTokenizer(loaded.side_files, loaded.config)
        self._messages = [] if system is None else [Message("system", system)]
        self._held: list[int] = []  # tokens in the session
        loaded.session.reset()

    def ask(self, text: str, emit: Emit, interrupted: Callable[[], bool] = lambda: False) -> Answer:
        """The answer to one more message of the user.

        Raises:
            UsageError: an empty message.
            InputError: the conversation no longer fits the context.
        """
        if not text.strip():
            raise UsageError("the prompt is empty", "write something")
        messages = [*self._messages, Message("user", text)]
        rendered = render_chat(self._template, messages, self._tokenizer.special_tokens)
        tokens = self._tokenizer.encode_chat(rendered)
        session = self._loaded.session
        # One token at least is left to read: its logits choose the first of the answer.
        kept = min(_common_length(self._held, tokens), len(tokens) - 1)
        session.truncate(kept)
        self._held = tokens[:kept]
        writer = Writer(self._loaded, self._tokenizer, self._wanted, emit, interrupted, self._draft)
        answer = writer.write(tokens, opens_thinking(rendered), kept)
        self._held = [*tokens, *answer.generation.tokens][: session.position]
        self._messages = [*messages, Message("assistant", self._remembered(answer))]
        return answer

    def _remembered(self, answer: Answer) -> str:
        """Templates of reasoning models drop the thoughts of turns that are over, each in its way;
        before others, and where the thoughts have no end, it is done here."""
        drops = CLOSE in self._template and CLOSE in answer.written
        return answer.written if drops else answer.text


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
