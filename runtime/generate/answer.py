"""Answer a prompt: template, tokens, generation, text streamed as it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsconv.errors import UsageError
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.thinking import Kind, ThinkSplitter, opens_thinking
from dsconv.runtime.text.tokenizer import StreamDecoder, TextTokenizer

from .generate import Generation, complete
from .sampling import Sampler, Sampling
from .speculation import SpeculativeSession

Emit = Callable[[Kind, str], None]


@dataclass(frozen=True)
class UserPrompt:
    """What is asked, and how: with `raw` as plain text, else by the model's chat template."""

    text: str
    system: str | None = None
    raw: bool = False


@dataclass(frozen=True)
class Speculation:
    """How many tokens were guessed, and how many of them were right."""

    proposed: int
    accepted: int


@dataclass(frozen=True)
class Answer:
    """Thoughts and answer apart, with what the generation took."""

    thinking: str
    text: str
    generation: Generation
    sampling: Sampling
    loaded: Loaded
    speculation: Speculation | None = None

    def to_json(self) -> dict[str, Any]:
        g, placement = self.generation, self.loaded.placement
        return {
            "text": self.text,
            "thinking": self.thinking,
            "tokens": list(g.tokens),
            "stop_reason": g.stop_reason,
            "prompt_tokens": g.prompt_tokens,
            "generated_tokens": len(g.tokens),
            "prefill_tokens_per_second": g.prefill_tokens_per_second,
            "decode_tokens_per_second": g.decode_tokens_per_second,
            "sampling": vars(self.sampling),
            "speculation": vars(self.speculation) if self.speculation else None,
            "runtime": self.loaded.runtime,
            "provider": self.loaded.provider,
            "placement": placement.to_json() if placement else None,
        }


def prepare(tokenizer: TextTokenizer, loaded: Loaded, prompt: UserPrompt) -> tuple[list[int], bool]:
    """-> (prompt tokens, whether the template has opened `<think>`).

    When the model has no chat template, the prompt is plain text.

    Raises:
        UsageError: an empty prompt, or a system prompt without a template to put it in.
    """
    if not prompt.text.strip():
        raise UsageError("the prompt is empty", 'ask something with -p "your question"')
    template = None if prompt.raw else chat_template(loaded.side_files)
    if template is None:
        if prompt.system is not None:
            raise UsageError("a system prompt needs a chat template", "leave out --system")
        return tokenizer.encode_prompt(prompt.text), opens_thinking(prompt.text)
    messages = [Message("system", prompt.system)] if prompt.system is not None else []
    messages.append(Message("user", prompt.text))
    rendered = render_chat(template, messages, tokenizer.special_tokens)
    return tokenizer.encode_chat(rendered), opens_thinking(rendered)


def answer(
    loaded: Loaded,
    prompt: UserPrompt,
    sampling: Sampling,
    max_tokens: int,
    emit: Emit = lambda kind, text: None,
    speculate: int = 0,
) -> Answer:
    """Generate until an end token, `max_tokens`, or the end of the context.

    Args:
        emit: told every piece of text as it comes, as "think" or "answer".
        speculate: tokens to guess ahead at most; 0 guesses none.
    """
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    tokens, inside = prepare(tokenizer, loaded, prompt)
    decoder, splitter = StreamDecoder(tokenizer, tokens), ThinkSplitter(inside)
    texts: dict[Kind, list[str]] = {"think": [], "answer": []}

    def keep(piece: str, last: bool = False) -> None:
        for kind, text in [*splitter.feed(piece), *(splitter.finish() if last else ())]:
            texts[kind].append(text)
            emit(kind, text)

    guessing = SpeculativeSession(loaded.session, speculate) if speculate else None
    session: Session = guessing or loaded.session
    generation = complete(
        session,
        tokens,
        Sampler(sampling),
        tokenizer.stop_ids,
        max_tokens,
        lambda token: keep(decoder.push(token)),
    )
    keep(decoder.finish(), last=True)
    thinking, text = "".join(texts["think"]), "".join(texts["answer"])
    counts = Speculation(guessing.proposed, guessing.accepted) if guessing else None
    return Answer(thinking.strip(), text.strip(), generation, sampling, loaded, counts)
