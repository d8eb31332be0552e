"""Calls of tools in what a model writes, in the form that its chat template teaches.

hermes    <tool_call>{"name": …, "arguments": {…}}</tool_call>   (Qwen2.5, Qwen3, Hermes)
deepseek  <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME, then ```json … ```   (DeepSeek-R1-0528)
llama     {"name": …, "parameters": {…}}   (Llama 3.1)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

HERMES, HERMES_END = "<tool_call>", "</tool_call>"
DEEPSEEK_ALL, DEEPSEEK = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>(?P<old>[^\n]+)\n```json\n(?P<block>.*?)\n?```"
    r"|(?P<new>[^<\n]+)<｜tool▁sep｜>(?P<plain>.*?))\s*<｜tool▁call▁end｜>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Call:
    """arguments: as JSON text, as clients want it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallFormat:
    """marks: beginnings of calls in a text. at_start: a call is all of the text."""

    name: str
    marks: tuple[str, ...]
    at_start: bool
    parse: Callable[[str], list[Call] | None]

    def begins(self, text: str) -> int | None:
        """Where calls begin, or could; None where all of the text is certain to be none."""
        if self.at_start:
            start = len(text) - len(text.lstrip())
            rest = text[start:]
            return start if not rest or any(_alike(rest, mark) for mark in self.marks) else None
        places = [text.find(mark) for mark in self.marks if mark in text]
        if places:
            return min(places)
        longest = max(map(len, self.marks)) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(mark.startswith(text[-size:]) for mark in self.marks):
                return len(text) - size
        return None


def _alike(text: str, mark: str) -> bool:
    return text.startswith(mark) or mark.startswith(text)


def format_of(template: str) -> CallFormat | None:
    """By what the template writes; None where it is no known one."""
    if DEEPSEEK in template:
        return DEEPSEEK_FORMAT
    if HERMES in template:
        return HERMES_FORMAT
    if "tools" in template and '"parameters"' in template:
        return LLAMA_FORMAT
    return None


def _call(data: Any) -> Call | None:
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return None
    arguments = data.get("arguments", data.get("parameters", {}))
    if isinstance(arguments, str):  # some models write JSON within JSON
        return Call(data["name"], arguments)
    return Call(data["name"], json.dumps(arguments, ensure_ascii=False))


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _hermes(text: str) -> list[Call] | None:
    found: list[Call] = []
    for part in text.split(HERMES)[1:]:
        body, _, rest = part.partition(HERMES_END)
        call = _call(_loads(body.strip()))
        if call is None or rest.strip():
            return None
        found.append(call)
    return found or None


def _deepseek(text: str) -> list[Call] | None:
    found: list[Call] = []
    for match in _DEEPSEEK.finditer(text):
        name = (match["old"] or match["new"]).strip()
        arguments = (match["block"] if match["old"] else match["plain"]).strip()
        if not isinstance(_loads(arguments), dict):
            return None
        found.append(Call(name, arguments))
    return found if len(found) == text.count(DEEPSEEK) else None


def _llama(text: str) -> list[Call] | None:
    found = list(_objects(text))
    calls = [_call(data) for data in found]
    kept = [call for call in calls if call is not None]
    return kept if kept and len(kept) == len(calls) else None


def _objects(text: str) -> Iterator[Any]:
    """JSON values one after the other, with semicolons between them as Llama writes several."""
    decoder, place = json.JSONDecoder(), 0
    text = text.strip().removeprefix("<|python_tag|>").strip()
    while place < len(text):
        try:
            data, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            yield None
            return
        yield data
        while place < len(text) and text[place] in "; \n\t\r":
            place += 1


HERMES_FORMAT = CallFormat("hermes", (HERMES,), False, _hermes)
DEEPSEEK_FORMAT = CallFormat("deepseek", (DEEPSEEK_ALL, DEEPSEEK), False, _deepseek)
LLAMA_FORMAT = CallFormat("llama", ("{", "<|python_tag|>"), True, _llama)


class CallSplitter:
    """Fed pieces of an answer, gives its text up to where calls begin, and the calls at the end."""

    def __init__(self, form: CallFormat) -> None:
        self._form = form
        self._held = ""
        self._plain = False  # certain to hold no call, of a form whose calls are all of a text

    def feed(self, piece: str) -> str:
        """Text that is certain to be none of a call."""
        if self._plain:
            return piece
        self._held += piece
        place = self._form.begins(self._held)
        if place is None:
            self._plain = self._form.at_start
            place = len(self._held)
        ready, self._held = self._held[:place], self._held[place:]
        return ready

    def finish(self) -> tuple[str, list[Call]]:
        """-> (text, calls): what cannot be read as calls is text."""
        calls = self._form.parse(self._held) if self._held else None
        return ("", calls) if calls else (self._held, [])
