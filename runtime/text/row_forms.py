"""A row of a data set to text or a conversation, in the forms that published sets have.

text         text, content, raw_content, article, document, passage, code; a string
messages     a list of turns under messages, conversations, …, or the row itself (`turns.py`)
a pair       question and answer under the names below (instruction and input together are the
             question), with system and history where there are
preferences  chosen, with its prompt; rejected is left alone
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .rows import Unusable
from .turns import Turn, content_of, tools_of, turns_of

TEXTS = ("text", "content", "raw_content", "article", "document", "passage", "code")
TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "contents")
STRINGS = ("data", "chat")  # lists of turns where they hold strings
SYSTEMS = ("system", "system_prompt", "systeminstruction", "system_instruction")
QUESTIONS: tuple[str, ...] = ("question", "problem", "query", "prompt", "instruction")
QUESTIONS += ("input", "inputs", "user", "human")
ANSWERS: tuple[str, ...] = ("answer", "completion", "response", "solution", "output")
ANSWERS += ("target", "targets", "assistant", "bot", "gpt", "final_answer")
FIRST_PAIRS = (("question", "answer"), ("problem", "solution"))
ADDED = ("input", "context")  # what an instruction is about
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "complex_cot")
WRAPPERS = ("row", "body")  # the hub's viewer, batches of OpenAI
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
KNOWN = (
    "text; messages or conversations; prompt and completion, question and answer, problem and "
    "solution, instruction and output, and their like; chosen"
)
_HUMAN = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True)
class PlainText:
    text: str


@dataclass(frozen=True)
class Conversation:
    """note: what of the row was left alone."""

    turns: tuple[Turn, ...]
    tools: tuple[Any, ...] | None = None
    note: str = ""


def read_row(value: Any) -> PlainText | Conversation:
    """Raises Unusable."""
    if value is None:
        raise Unusable("blank", blank=True)
    if isinstance(value, str):
        return _text(value, "it")
    if isinstance(value, list):
        return Conversation(turns_of(value, "the row"))
    if not isinstance(value, dict):
        raise Unusable(f"{type(value).__name__}, not an object", form=True)
    row = {key.lower(): item for key, item in value.items()} | value
    for name in WRAPPERS:
        if isinstance(row.get(name), dict):
            return read_row(row[name])
    for name in MEDIA:
        if row.get(name):
            raise Unusable(f"belongs to {name!r}, which a text model does not see")
    return _read_object(row, value)


def _read_object(row: Mapping[str, Any], value: Mapping[str, Any]) -> PlainText | Conversation:
    for name in TEXTS:
        if isinstance(row.get(name), str) and not (name == "content" and "role" in row):
            return _text(row[name], name)
    for name in (*TURNS, *STRINGS):
        turns = row.get(name)
        if isinstance(turns, list) and (name in TURNS or all(isinstance(t, str) for t in turns)):
            conversation = _with_system(turns_of(turns, name), row)
            chosen = row.get("chosen")
            if isinstance(chosen, dict) and conversation.turns[-1]["role"] == "user":
                turns = (*conversation.turns, *turns_of([chosen], "chosen"))
                return replace(conversation, turns=turns, note="chosen is used, rejected is not")
            return conversation
    if row.get("chosen") is not None:
        return replace(_chosen(row), note="chosen is used, rejected is not")
    return _pair(row, value)


def _text(text: str, name: str) -> PlainText:
    if not text.strip():
        raise Unusable(f"{name} is empty", blank=True)
    return PlainText(text)


def _pair(row: Mapping[str, Any], value: Mapping[str, Any]) -> Conversation:
    pair = _names_of_pair(row)
    if pair is None:
        if isinstance(row.get("prompt"), list):  # of turns, without an answer
            return _with_system(turns_of(row["prompt"], "prompt"), row)
        wrong = [name for name in (*TEXTS, *TURNS) if row.get(name) is not None]
        if wrong and "role" not in row:
            raise Unusable(f"{wrong[0]} is {_kind(row[wrong[0]])}")
        keys = ", ".join(repr(key) for key in list(value)[:12]) or "none"
        raise Unusable(f"its keys are {keys}: none of the known forms", form=True)
    question, answer = pair
    asked = _side(row[question], question, "user")
    if question in ("instruction", "prompt", "question", "query"):
        asked = _with_added(asked, row, (question, answer))
    return _with_system((*_history(row), *asked, *_answer(row, answer)), row)


def _names_of_pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    for pair in FIRST_PAIRS:
        if all(row.get(name) is not None for name in pair):
            return pair
    question = next((name for name in QUESTIONS if _says(row.get(name))), None)
    answer = next((name for name in ANSWERS if row.get(name) is not None), None)
    return None if question is None or answer is None else (question, answer)


def _says(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _with_added(
    asked: tuple[Turn, ...], row: Mapping[str, Any], used: tuple[str, str]
) -> tuple[Turn, ...]:
    """An instruction, and below it what it is about."""
    added = [row[name] for name in ADDED if name not in used and _says(row.get(name))]
    if len(asked) != 1 or not added or not all(isinstance(part, str) for part in added):
        return asked
    return ({**asked[0], "content": "\n".join([asked[0]["content"], *added])},)


def _answer(row: Mapping[str, Any], name: str) -> tuple[Turn, ...]:
    turns = _side(row[name], name, "assistant")
    thoughts = next((row[key] for key in THOUGHTS if isinstance(row.get(key), str)), None)
    if thoughts and len(turns) == 1:
        return ({**turns[0], "reasoning_content": thoughts},)
    return turns


def _side(value: Any, name: str, role: str) -> tuple[Turn, ...]:
    """One side of a pair: words, a number, or turns."""
    if isinstance(value, list):
        return turns_of(value, name)
    if isinstance(value, dict):
        return turns_of([value], name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unusable(f"{name} is {_kind(value)}")
    if not str(value).strip():
        raise Unusable(f"{name} is empty", blank=True)
    return ({"role": role, "content": str(value)},)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", str: "a string"}
    return names.get(type(value), "a number") + ", which is not what stands there"


def _history(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Pairs of strings, or turns."""
    history = row.get("history")
    if not history:
        return ()
    if not isinstance(history, list):
        raise Unusable("history is not a list")
    if all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        return turns_of([turn for pair in history for turn in pair], "history")
    return turns_of(history, "history")


def _with_system(turns: tuple[Turn, ...], row: Mapping[str, Any]) -> Conversation:
    tools = tools_of(row)
    system = next((row[name] for name in SYSTEMS if row.get(name)), None)
    if system is None or turns[0]["role"] in ("system", "developer"):
        return Conversation(turns, tools)
    return Conversation(({"role": "system", "content": content_of(system)}, *turns), tools)


def _chosen(row: Mapping[str, Any]) -> Conversation:
    """The preferred answer after its prompt, which may stand in it."""
    chosen = row["chosen"]
    if isinstance(chosen, str) and _HUMAN.match(chosen):  # "\n\nHuman: …\n\nAssistant: …"
        parts = _HUMAN.split(chosen)[1:]
        spoken = zip(parts[::2], parts[1::2], strict=True)
        return Conversation(turns_of([{"from": who, "value": said} for who, said in spoken], "it"))
    answer = _side(chosen, "chosen", "assistant")
    if answer[0]["role"] != "assistant":
        return _with_system(answer, row)
    name = next((name for name in QUESTIONS if _says(row.get(name))), None)
    if name is None:
        raise Unusable("chosen without a prompt", form=True)
    asked = _with_added(_side(row[name], name, "user"), row, (name, "chosen"))
    return _with_system((*_history(row), *asked, *answer), row)
