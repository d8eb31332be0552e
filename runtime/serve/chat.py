"""/v1/chat/completions: a conversation goes on by the model's own template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from dsconv.convert.checkpoint.checkpoint import generation_config
from dsconv.runtime.text.thinking import Kind, opens_thinking

from .answers import DONE, Texts, event_bytes, new_id
from .choice import End, Plan, PromptLogs, Step
from .completions import FINISH
from .fields import Fields
from .problems import Problem
from .sampling import MOST, MOST_LOGPROBS, Settings, read_settings
from .served import Served
from .texts.token_texts import Log, TokenTexts
from .texts.tool_calls import Call, CallFormat, CallSplitter, format_of
from .turns import Turn, read_tools, read_turns, render

RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
FIELD: dict[Kind, str] = {"think": "reasoning_content", "answer": "content"}


@dataclass(frozen=True)
class ChatRequest:
    """calls: how the model writes calls of tools, where tools were offered."""

    tokens: list[int]
    inside: bool
    settings: Settings
    logprobs: int | None
    calls: CallFormat | None = None
    several_calls: bool = True

    def plans(self) -> list[Plan]:
        settings = self.settings
        return [
            Plan(
                self.tokens,
                settings.wanted.max_tokens,
                settings.sampling(index),
                settings.wanted.stop,
                settings.stop_ids,
                self.inside,
                split=True,
                logprobs=self.logprobs,
            )
            for index in range(settings.n)
        ]


def read_chat(data: object, served: Served) -> ChatRequest:
    """Renders the template and splits the text into tokens: not for the event loop.

    Raises:
        Problem, InputError, UsageError: what is wrong with it.
    """
    fields = Fields(data)
    if served.template is None:
        raise Problem(400, "the model has no chat template; use /v1/completions", "messages")
    settings = read_settings(fields, served, _tokens(fields, served))
    logprobs = _logprobs(fields)
    for name, off in (("audio", None), ("prediction", None), ("web_search_options", None)):
        fields.refuse(name, "is not supported; leave it out", off)
    fields.refuse("modalities", "only text is written", ["text"])
    fields.refuse("functions", "is OpenAI's old form; use tools")
    fields.refuse("function_call", "is OpenAI's old form; use tool_choice")
    form = fields.child("response_format")
    if form is not None and form.text("type") != "text":
        raise fields.wrong("response_format", "answers are not forced into a form; ask in words")
    several = fields.boolean("parallel_tool_calls", True)
    tools, calls = _tools(fields, served)
    turns, known = read_turns(fields), _template_settings(fields)
    fields.done()
    rendered = render(served, turns, tools, known)
    served.refuse_long(rendered, "messages")
    tokens = served.tokenizer.encode_chat(rendered)
    served.refuse_tokens(tokens, "messages")
    return ChatRequest(tokens, opens_thinking(rendered), settings, logprobs, calls, several)


def _tokens(fields: Fields, served: Served) -> int | None:
    """What the request says, or the server's limit where the model does not say either."""
    old = fields.integer("max_tokens", 1, MOST)
    new = fields.integer("max_completion_tokens", 1, MOST)
    if old is not None and new is not None and old != new:
        raise fields.wrong("max_tokens", "differs from max_completion_tokens")
    asked = new if new is not None else old
    if asked is None:
        loaded = served.loaded
        if generation_config(loaded.side_files, loaded.config).has("max_new_tokens"):
            return None
        return served.most_tokens
    served.refuse_answer(asked, "max_tokens" if new is None else "max_completion_tokens")
    return min(asked, served.most_tokens)


def _logprobs(fields: Fields) -> int | None:
    wanted, top = fields.boolean("logprobs"), fields.integer("top_logprobs", 0, MOST_LOGPROBS)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "needs logprobs to be true")
    return (top or 0) if wanted else None


def _tools(fields: Fields, served: Served) -> tuple[list[Turn], CallFormat | None]:
    tools, choice = read_tools(fields), fields.any("tool_choice")
    if choice == "none":
        return [], None
    if choice not in (None, "auto"):
        raise fields.wrong("tool_choice", "a call cannot be forced; use auto or none")
    if not tools:
        return [], None
    assert served.template is not None
    template = served.template.template
    found = format_of(template) if "tools" in template else None
    if found is None:
        raise fields.wrong(
            "tools", "the model's chat template has no tools, or in a form that is not known"
        )
    return tools, found


def _template_settings(fields: Fields) -> dict[str, Any]:
    fields.refuse("continue_final_message", "an answer is always a new message", False)
    for name in ("reasoning_effort", "enable_thinking", "thinking", "reasoning"):
        fields.refuse(name, "use chat_template_kwargs, if the template has a switch")
    given = fields.any("chat_template_kwargs")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise fields.wrong("chat_template_kwargs", "is not an object")
    wrong = next((name for name in RESERVED if name in given), None)
    if wrong is not None:
        raise fields.wrong("chat_template_kwargs", f"{wrong} is set by other fields")
    return {**given, "add_generation_prompt": fields.boolean("add_generation_prompt", True)}


class _Trimmed:
    """Text without the white space at its ends, as `dsconv run --json` shows it."""

    def __init__(self) -> None:
        self._begun, self._space = False, ""

    def feed(self, piece: str) -> str:
        text = self._space + piece
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :] if kept or self._begun else ""
        self._begun = self._begun or bool(kept)
        return kept


@dataclass
class _Message:
    """One answer on its way."""

    splitter: CallSplitter | None
    several_calls: bool
    texts: dict[Kind, str] = field(default_factory=lambda: {"think": "", "answer": ""})
    calls: list[Call] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    _trims: dict[Kind, _Trimmed] = field(
        default_factory=lambda: {"think": _Trimmed(), "answer": _Trimmed()}
    )

    def feed(self, event: Step) -> dict[Kind, str]:
        """-> what is new of either, with white space at the ends held back."""
        new: dict[Kind, str] = {}
        self.logs += event.logs
        for kind, piece in event.pieces:
            if kind == "answer" and self.splitter is not None:
                piece = self.splitter.feed(piece)
            self._add(new, kind, piece)
        return new

    def finish(self) -> dict[Kind, str]:
        new: dict[Kind, str] = {}
        if self.splitter is not None:
            rest, calls = self.splitter.finish()
            self.calls = calls if self.several_calls else calls[:1]
            self._add(new, "answer", rest)
        return new

    def _add(self, new: dict[Kind, str], kind: Kind, piece: str) -> None:
        piece = self._trims[kind].feed(piece)
        if piece:
            self.texts[kind] += piece
            new[kind] = new.get(kind, "") + piece

    def reason(self, end: End) -> str:
        return "tool_calls" if self.calls else FINISH[end.reason]

    def to_json(self) -> dict[str, Any]:
        content = self.texts["answer"]
        found: dict[str, Any] = {
            "role": "assistant",
            "content": None if self.calls and not content else content,
        }
        if self.texts["think"]:
            found["reasoning_content"] = self.texts["think"]
        if self.calls:
            found["tool_calls"] = [_call_json(call) for call in self.calls]
        return found


def _call_json(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": new_id("call"), "type": "function", "function": function}


def _logs_json(logs: list[Log], names: TokenTexts) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": names.name(token), "logprob": logprob, "bytes": names.bytes_of(token)}

    content = [
        {**entry(log.token, log.logprob), "top_logprobs": [entry(*one) for one in log.top]}
        for log in logs
    ]
    return {"content": content, "refusal": None}


def _messages(request: ChatRequest) -> list[_Message]:
    calls = request.calls
    return [
        _Message(CallSplitter(calls) if calls else None, request.several_calls)
        for _ in range(request.settings.n)
    ]


async def whole_chat(request: ChatRequest, served: Served, texts: Texts) -> object:
    messages = _messages(request)
    async for events in texts:
        for event in events:
            if isinstance(event, Step):
                messages[event.choice].feed(event)
    choices = []
    for index, message in enumerate(messages):
        message.finish()
        logs = _logs_json(message.logs, served.texts) if request.logprobs is not None else None
        choices.append(
            {
                "index": index,
                "message": message.to_json(),
                "logprobs": logs,
                "finish_reason": message.reason(texts.ends[index]),
            }
        )
    head = _head(served, "chat.completion")
    return {**head, "choices": choices, "usage": texts.usage(1)}


async def chat_events(request: ChatRequest, served: Served, texts: Texts) -> AsyncIterator[bytes]:
    messages = _messages(request)
    head = _head(served, "chat.completion.chunk")
    usage = {"usage": None} if request.settings.stream_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        message = messages[index]
        logs = _logs_json(message.logs, served.texts) if message.logs else None
        message.logs = []
        choice = {"index": index, "delta": delta, "logprobs": logs, "finish_reason": reason}
        return event_bytes({**head, "choices": [choice], **usage})

    opened = False
    async for events in texts:
        found: list[bytes] = []
        if not opened:
            opened = True
            for index in range(len(messages)):
                found.append(chunk(index, {"role": "assistant", "content": ""}))
        for event in events:
            if isinstance(event, PromptLogs):
                continue
            message = messages[event.choice]
            new = message.feed(event) if isinstance(event, Step) else message.finish()
            found += [chunk(event.choice, {FIELD[kind]: text}) for kind, text in new.items()]
            if isinstance(event, End):
                for number, call in enumerate(message.calls):
                    delta = {"tool_calls": [{"index": number, **_call_json(call)}]}
                    found.append(chunk(event.choice, delta))
                found.append(chunk(event.choice, {}, message.reason(event)))
        if found:
            yield b"".join(found)
    if request.settings.stream_usage:
        yield event_bytes({**head, "choices": [], "usage": texts.usage(1)})
    yield DONE


def _head(served: Served, kind: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
    }
