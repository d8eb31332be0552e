"""Answer a prompt: template, tokens, generation, text streamed as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsconv.errors import UsageError
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.thinking import opens_thinking
from dsconv.runtime.text.token_range import refuse_tokens_beyond
from dsconv.runtime.text.tokenizer import TextTokenizer

from .draft import Draft, DraftedSession
from .generate import Generation, StopReason, complete
from .sampling import Sampler, Sampling
from .speculation import SpeculativeSession
from .written_text import Emit, WrittenText, stop_tokens


@dataclass(frozen=True)
class UserPrompt:
    """What is asked, and how: with `raw` as plain text, else by the model's chat template."""

    text: str
    system: str | None = None
    raw: bool = False


@dataclass(frozen=True)
class Wanted:
    """How an answer shall be written.

    Args:
        stop: texts that end it, and are not part of it.
        speculate: tokens to guess ahead at most; 0 guesses none.
        not_applied: what the model asks for besides, in words.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    speculate: int = 0
    not_applied: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise UsageError("--stop: an empty text", "name the text that shall end the answer")


@dataclass(frozen=True)
class Speculation:
    """How many tokens were guessed, and how many of them were right.

    draft: name of the model that guessed; None where the text itself did.
    """

    proposed: int
    accepted: int
    draft: str | None = None


@dataclass(frozen=True)
class Answer:
    """Thoughts and answer apart, with what the generation took.

    written: both with their tags, as the model wrote them. stopped_by: which text of --stop it was.
    """

    thinking: str
    text: str
    written: str
    generation: Generation
    wanted: Wanted
    loaded: Loaded
    speculation: Speculation | None = None
    stopped_by: str | None = None

    @property
    def sampling(self) -> Sampling:
        return self.wanted.sampling

    def to_json(self) -> dict[str, Any]:
        g, placement = self.generation, self.loaded.placement
        return {
            "text": self.text,
            "thinking": self.thinking,
            "tokens": list(g.tokens),
            "stop_reason": g.stop_reason,
            "stopped_by": self.stopped_by,
            "prompt_tokens": g.prompt_tokens,
            "generated_tokens": len(g.tokens),
            "prefill_tokens_per_second": g.prefill_tokens_per_second,
            "decode_tokens_per_second": g.decode_tokens_per_second,
            "sampling": vars(self.sampling),
            "not_applied": list(self.wanted.not_applied),
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
        tokens = tokenizer.encode_prompt(prompt.text)
        refuse_tokens_beyond(tokens, loaded.session.vocabulary, "the prompt", tokenizer)
        return tokens, opens_thinking(prompt.text)
    messages = [Message("system", prompt.system)] if prompt.system is not None else []
    messages.append(Message("user", prompt.text))
    rendered = render_chat(template, messages, tokenizer.special_tokens)
    tokens = tokenizer.encode_chat(rendered)
    refuse_tokens_beyond(tokens, loaded.session.vocabulary, "the prompt", tokenizer)
    return tokens, opens_thinking(rendered)


def answer(
    loaded: Loaded,
    prompt: UserPrompt,
    wanted: Wanted,
    emit: Emit = lambda kind, text: None,
    draft: Draft | None = None,
) -> Answer:
    """Generate until an end token, a stop text, `max_tokens`, or the end of the context.

    Args:
        emit: told every piece of text as it comes, as "think" or "answer".
        draft: guesses what comes next.
    """
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    tokens, inside = prepare(tokenizer, loaded, prompt)
    return Writer(loaded, tokenizer, wanted, emit, draft=draft).write(tokens, inside)


@dataclass(frozen=True)
class Writer:
    """Writes answers with one model.

    interrupted: asked after every token whether to leave off there.
    """

    loaded: Loaded
    tokenizer: TextTokenizer
    wanted: Wanted
    emit: Emit
    interrupted: Callable[[], bool] = lambda: False
    draft: Draft | None = None

    def write(self, tokens: Sequence[int], inside: bool, kept: int = 0) -> Answer:
        """The answer to a prompt, of which the session has seen the first `kept` tokens.

        inside: the prompt has opened `<think>`.
        """
        wanted, tokenizer = self.wanted, self.tokenizer
        text = WrittenText(tokenizer, tokens, wanted.stop, inside, self.emit)

        def take(token: int) -> StopReason | None:
            return text.take(token) or ("interrupted" if self.interrupted() else None)

        session = self.loaded.session
        guessing: SpeculativeSession | DraftedSession | None = None
        if self.draft is not None:
            guessing = self.draft.guessing(session)
        elif wanted.speculate:
            guessing = SpeculativeSession(session, wanted.speculate)
        generation = complete(
            guessing or session,
            tokens[kept:],
            Sampler(wanted.sampling, before=tokens[:kept]),
            (*tokenizer.stop_ids, *stop_tokens(tokenizer, wanted.stop)),
            wanted.max_tokens,
            take,
        )
        if guessing:
            guessing.truncate(guessing.position)  # forgets what was guessed for nothing
        text.finish()
        return Answer(
            text.thinking.strip(),
            text.answer.strip(),
            text.written,
            generation,
            wanted,
            self.loaded,
            self._speculation(guessing),
            text.stopped_by,
        )

    def _speculation(
        self, guessing: SpeculativeSession | DraftedSession | None
    ) -> Speculation | None:
        if guessing is None:
            return None
        name = self.draft.name if self.draft is not None else None
        return Speculation(guessing.proposed, guessing.accepted, name)
