"""The model that is served, and what a request may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.chat_template import chat_template
from dsconv.runtime.text.token_range import refuse_tokens_beyond
from dsconv.runtime.text.tokenizer import TextTokenizer

from .problems import Problem
from .texts.template_process import TemplateProcess
from .texts.token_texts import TokenTexts

MIB = 1 << 20
# Of a text, per position of the context: more never fits, and need not be split into tokens.
CHARACTERS = 32


@dataclass(frozen=True)
class Limits:
    """tokens: of an answer; 0 is what the context has room for. texts: of one request. idle: a
    connection without a request. slow: a request that does not arrive, a reader who does not
    read. drain: what is being answered when the server ends. All times in seconds."""

    tokens: int = 0
    texts: int = 128
    queue: int = 256
    body_bytes: int = 8 * MIB
    connections: int = 1024
    idle: float = 60.0
    slow: float = 30.0
    drain: float = 30.0


@dataclass(frozen=True)
class Served:
    """Args: name: as clients call the model."""

    loaded: Loaded
    tokenizer: TextTokenizer
    name: str
    limits: Limits
    context: int  # positions of one text, in the batch
    created: int = field(default_factory=lambda: int(time.time()))
    template: TemplateProcess | None = None
    texts: TokenTexts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", TokenTexts(self.tokenizer))

    @property
    def most_tokens(self) -> int:
        """Of one answer."""
        return self.limits.tokens or self.context

    def refuse_answer(self, tokens: int, where: str) -> None:
        """Raises Problem: the server writes fewer. (The context ends a text by itself.)"""
        limit = self.limits.tokens
        if limit and tokens > limit:
            raise Problem(400, f"{where}: {tokens} tokens, this server writes {limit}", where)

    def refuse_long(self, text: str, where: str) -> None:
        limit = CHARACTERS * self.context
        if len(text) > limit:
            raise Problem(
                400,
                f"{where} has {len(text)} characters, more than {self.context} tokens hold",
                where,
                "context_length_exceeded",
            )

    def refuse_tokens(self, tokens: list[int], where: str, written: bool = True) -> None:
        """written: as text by the client, else as numbers.

        Raises:
            Problem, InputError: they are none of the model's, or too many.
        """
        if not tokens:
            raise Problem(400, f"{where} is empty", where)
        if len(tokens) > self.context:
            raise Problem(
                400,
                f"{where} has {len(tokens)} tokens, the context {self.context}",
                where,
                "context_length_exceeded",
            )
        rows = self.loaded.session.vocabulary
        wrong = next((token for token in tokens if not 0 <= token < rows), None)
        if wrong is not None and not written:
            raise Problem(
                400, f"{where}: {wrong} is no token of the model, which has {rows}", where
            )
        refuse_tokens_beyond(tokens, self.loaded.session.vocabulary, where, self.tokenizer)

    def to_json(self) -> dict[str, Any]:
        """As /v1/models shows it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "dsconv",
            "max_model_len": self.context,
        }


def serve_model(loaded: Loaded, name: str, limits: Limits, context: int) -> Served:
    """Raises InputError: its tokenizer or template is broken."""
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    text = chat_template(loaded.side_files)
    template = None if text is None else TemplateProcess(text)
    return Served(loaded, tokenizer, name, limits, context, template=template)
