"""Render chat templates: programs that come with the model, run in a sandbox with limits."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .tokenizer import read_side_file

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 2**20  # of a template, of its output beyond the messages, of any value in between
MAX_SECONDS = 5.0
MAX_EXPONENT = 64
HINT = "use the template of the original model, or give plain text without a template"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


def chat_template(side_files: Mapping[str, bytes]) -> str | None:
    """The model's template; None when it has none. Files of its own win over tokenizer_config.

    Raises:
        InputError: the file that holds it is broken.
    """
    if "chat_template.jinja" in side_files:
        try:
            return side_files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"chat_template.jinja: not UTF-8: {error}", HINT) from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        reader = read_side_file(side_files, name)
        if reader.has("chat_template"):
            value = reader.data["chat_template"]
            return _default_of(value, name) if isinstance(value, list) else reader.string(
                "chat_template"
            )
    return None


def _default_of(templates: list[Any], where: str) -> str:
    for entry in templates:
        if isinstance(entry, dict) and entry.get("name") == "default":
            if isinstance(entry.get("template"), str):
                return str(entry["template"])
    raise InputError(f"{where}: chat_template: none of the list is named default", HINT)


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as the text the model was trained on, ready for its next turn.

    Raises:
        InputError: the template is broken, refuses the messages, reaches out of its sandbox, or
            exceeds its limits of time and size.
    """
    from jinja2.exceptions import SecurityError, TemplateError

    if len(template) > MAX_CHARACTERS:
        raise InputError(f"chat template: {len(template)} characters, limit {MAX_CHARACTERS}", HINT)
    variables: dict[str, Any] = {
        **special_tokens,
        "messages": [asdict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
    }
    limit = MAX_CHARACTERS + sum(len(message.content) for message in messages)
    try:
        with _limits(limit):
            return _joined(_environment().from_string(template).generate(variables), limit)
    except SecurityError as error:
        raise InputError(f"chat template: reaches out of its sandbox: {error}", HINT) from error
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"chat template: line {line}" if line else "chat template"
        raise InputError(f"{where}: {error.message}", HINT) from error
    except RecursionError as error:
        raise InputError("chat template: nested too deeply", HINT) from error
    # What a template computes with its values can fail in every way Python can.
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise InputError(f"chat template: {type(error).__name__}: {error}", HINT) from error


def _joined(pieces: Iterator[str], limit: int) -> str:
    collected, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise InputError(f"chat template: more than {limit} characters of output", HINT)
        collected.append(piece)
    return "".join(collected)


@contextmanager
def _limits(max_characters: int) -> Iterator[None]:
    """Stop Python code of this thread that runs too long or makes too long a text.

    A trace function sees every line, also in loops that print nothing, works in any thread and
    on any system. What it cannot see is a single step inside C; `_environment` bounds those.
    """
    deadline = time.monotonic() + MAX_SECONDS

    def check(frame: FrameType, event: str, value: Any) -> Callable[..., Any]:
        if time.monotonic() > deadline:
            raise InputError(f"chat template: still running after {MAX_SECONDS:g} seconds", HINT)
        if event == "return" and isinstance(value, (str, list)) and len(value) > max_characters:
            raise InputError(f"chat template: a value of more than {max_characters} items", HINT)
        return check

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)


def _refuse_large(values: Sequence[Any]) -> None:
    """Widths and counts are what lets one short step fill the memory."""
    if any(isinstance(value, int) and abs(value) > MAX_CHARACTERS for value in values):
        raise InputError(f"chat template: a number above {MAX_CHARACTERS} as an argument", HINT)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps the marks by which jinja passes its context
    def call(*args: Any, **kwargs: Any) -> Any:
        _refuse_large((*args, *kwargs.values()))
        return function(*args, **kwargs)

    return call


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "**" and isinstance(right, int):
        if abs(right) > MAX_EXPONENT or isinstance(left, int) and abs(left) > 2**MAX_EXPONENT:
            raise InputError(f"chat template: a power with exponent {right}", HINT)
    if operator == "*":
        for text, count in ((left, right), (right, left)):
            if isinstance(text, (str, list, tuple)) and isinstance(count, int):
                _refuse_large([len(text) * count])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the models were trained on it: jinja's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    """The dialect of transformers: its globals, filters and the `generation` block."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """Marks the assistant's words for training; here its content counts and nothing else."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            _refuse_large((*args, *kwargs.values()))
            return super().call(context, obj, *args, **kwargs)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _bounded(each) for name, each in environment.filters.items()}
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment
