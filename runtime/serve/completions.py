"""/v1/completions: plain text goes on; with `echo` the log-probabilities of the prompt too."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from .answers import DONE, Texts, event_bytes, new_id
from .choice import End, Plan, PromptLogs, Step
from .fields import Fields
from .sampling import MOST, MOST_LOGPROBS, Settings, read_settings
from .served import Served
from .texts.token_places import places_of
from .texts.token_texts import Log, TokenTexts

DEFAULT_TOKENS = 16  # as OpenAI's
FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Prompt:
    """text: as echo writes it. places: where in it the tokens begin."""

    tokens: list[int]
    text: str
    places: list[int]


@dataclass(frozen=True)
class CompletionRequest:
    prompts: list[Prompt]
    settings: Settings
    echo: bool
    logprobs: int | None

    def plans(self) -> list[Plan]:
        """Of the first prompt all texts, then of the next."""
        settings = self.settings
        return [
            Plan(
                prompt.tokens,
                settings.wanted.max_tokens,
                settings.sampling(index),
                settings.wanted.stop,
                settings.stop_ids,
                logprobs=self.logprobs,
                of_prompt=self.echo,
            )
            for prompt in self.prompts
            for index in range(settings.n)
        ]


def read_completion(data: object, served: Served) -> CompletionRequest:
    """Splits texts into tokens, which may take a while: not for the event loop.

    Raises:
        Problem, InputError, UsageError: what is wrong with it.
    """
    fields = Fields(data)
    tokens = fields.integer("max_tokens", 0, MOST)
    if tokens is not None:
        served.refuse_answer(tokens, "max_tokens")
    tokens = min(DEFAULT_TOKENS if tokens is None else tokens, served.most_tokens)
    settings = read_settings(fields, served, tokens)
    best_of = fields.integer("best_of", 1, MOST)
    if best_of is not None and best_of != settings.n:
        raise fields.wrong("best_of", f"{best_of} is not n, which is {settings.n}; leave it out")
    fields.refuse("suffix", "texts are written at the end only; leave it out", "")
    echo, logprobs = fields.boolean("echo"), None
    if fields.any("logprobs") is not False:  # as chats have it
        logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)
    given = fields.required("prompt")
    fields.done()
    most, placed = served.limits.texts // settings.n, echo and logprobs is not None
    prompts = _prompts(given, fields, served, most, placed)
    return CompletionRequest(prompts, settings, echo, logprobs)


def _prompts(given: Any, fields: Fields, served: Served, most: int, placed: bool) -> list[Prompt]:
    if isinstance(given, str) or (isinstance(given, list) and given and _is_id(given[0])):
        given = [given]
    if not isinstance(given, list) or not given:
        raise fields.wrong("prompt", "is not a text, a list of texts, or tokens")
    if len(given) > most:
        raise fields.wrong("prompt", f"{len(given)} prompts, limit {most} with this n")
    return [_prompt(one, fields, served, placed) for one in given]


def _is_id(value: object) -> bool:
    return type(value) is int


def _prompt(one: Any, fields: Fields, served: Served, placed: bool) -> Prompt:
    """placed: with the places of its tokens."""
    if isinstance(one, str):
        served.refuse_long(one, "prompt")
        tokens = served.tokenizer.encode_prompt(one)
    elif isinstance(one, list) and all(map(_is_id, one)):
        tokens = one
    else:
        raise fields.wrong("prompt", "is not a text, a list of texts, or tokens")
    served.refuse_tokens(tokens, "prompt", isinstance(one, str))
    if isinstance(one, str):
        return Prompt(tokens, one, served.tokenizer.prompt_places(one) if placed else [])
    text = served.tokenizer.decode(tokens, skip_special=False)
    return Prompt(tokens, text, places_of(served.tokenizer, tokens) if placed else [])


@dataclass
class _Body:
    """What is there of one text, or new since the last event of a stream."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    tops: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def add(self, log: Log | None, name: str, top: dict[str, float] | None, offset: int) -> None:
        self.tokens.append(name)
        self.values.append(log.logprob if log else None)
        self.tops.append(top)
        self.offsets.append(offset)

    def to_json(self, index: int, end: End | None, with_logs: bool) -> dict[str, Any]:
        logs = {
            "tokens": self.tokens,
            "token_logprobs": self.values,
            "top_logprobs": self.tops,
            "text_offset": self.offsets,
        }
        return {
            "index": index,
            "text": self.text,
            "logprobs": logs if with_logs else None,
            "finish_reason": FINISH[end.reason] if end else None,
        }


class _Writer:
    """Makes the choices of a response from events."""

    def __init__(self, request: CompletionRequest, names: TokenTexts) -> None:
        self._request, self._names = request, names
        count = len(request.prompts) * request.settings.n
        self.bodies = [_Body() for _ in range(count)]
        self._told = [0] * count  # tokens of the prompt
        if request.echo:
            for index in range(count):
                self._begin(index)

    @property
    def with_logs(self) -> bool:
        return self._request.logprobs is not None

    def prompt_of(self, index: int) -> Prompt:
        return self._request.prompts[index // self._request.settings.n]

    def _begin(self, index: int) -> None:
        prompt, body = self.prompt_of(index), self.bodies[index]
        body.text = prompt.text
        if self.with_logs:  # nobody says how likely the first token is
            body.add(None, self._names.name(prompt.tokens[0]), None, prompt.places[0])
            self._told[index] = 1

    def add(self, event: Step | PromptLogs | End) -> None:
        if isinstance(event, End):
            return
        body, prompt = self.bodies[event.choice], self.prompt_of(event.choice)
        if isinstance(event, PromptLogs):
            told = self._told[event.choice]
            for log, place in zip(event.logs, prompt.places[told:], strict=False):
                self._log(body, log, place)
            self._told[event.choice] += len(event.logs)
            return
        before = len(prompt.text) if self._request.echo else 0
        for log in event.logs:
            self._log(body, log, before + log.place)
        body.text += "".join(text for _, text in event.pieces)

    def _log(self, body: _Body, log: Log, offset: int) -> None:
        top = {self._names.name(token): value for token, value in log.top}
        name = self._names.name(log.token)
        body.add(log, name, {name: log.logprob, **top}, offset)


async def whole_completion(request: CompletionRequest, served: Served, texts: Texts) -> object:
    writer = _Writer(request, served.texts)
    async for events in texts:
        for event in events:
            writer.add(event)
    choices = [
        body.to_json(index, texts.ends[index], writer.with_logs)
        for index, body in enumerate(writer.bodies)
    ]
    return {**_head(served), "choices": choices, "usage": texts.usage(len(request.prompts))}


async def completion_events(
    request: CompletionRequest, served: Served, texts: Texts
) -> AsyncIterator[bytes]:
    writer, head = _Writer(request, served.texts), _head(served)
    usage = {"usage": None} if request.settings.stream_usage else {}

    def chunk(index: int, end: End | None) -> bytes:
        body = writer.bodies[index]
        writer.bodies[index] = _Body()
        return event_bytes(
            {**head, "choices": [body.to_json(index, end, writer.with_logs)], **usage}
        )

    async for events in texts:
        found: list[bytes] = []
        for event in events:
            writer.add(event)
            if not isinstance(event, PromptLogs):
                found.append(chunk(event.choice, event if isinstance(event, End) else None))
        if found:
            yield b"".join(found)
    if request.settings.stream_usage:
        yield event_bytes({**head, "choices": [], "usage": texts.usage(len(request.prompts))})
    yield DONE


def _head(served: Served) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
    }
