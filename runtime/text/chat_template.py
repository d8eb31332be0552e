"""Render chat templates: programs that come with the model, run in a sandbox with limits."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import TYPE_CHECKING, Any

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError

from .bounded_call import CAN_FORK, BoundReached, bounded_call
from .tokenizer import read_side_file

if TYPE_CHECKING:
    from jinja2 import Template

ESCAPED_BYTES = 6  # of one character in JSON, at most: UTF-8 needs 4, a control character 6
HINT = "use the template of the original model, or give plain text without a template"


class _LimitReached(BaseException):
    """Not an Exception: jinja swallows those while it computes constants."""


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
        if isinstance(reader.data.get("chat_template"), list):
            return _default_of(reader.data["chat_template"], name)
        if reader.has("chat_template"):
            return reader.string("chat_template")
    return None


def _default_of(templates: list[Any], where: str) -> str:
    for entry in templates:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return ConfigReader(entry, f"{where}: chat_template").string("template")
    raise InputError(f"{where}: chat_template: none of the list is named default", HINT)


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as the text the model was trained on, ready for its next turn.

    Raises:
        InputError: as `render_chats`.
    """
    return render_chats(template, [messages], special_tokens, add_generation_prompt)[0]


def render_chats(
    template: str,
    conversations: Sequence[Sequence[Message]],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool = True,
) -> list[str]:
    """Several conversations, in one process and within the limits of one.

    Raises:
        InputError: the template is broken, refuses the messages, reaches out of its sandbox, or
            exceeds its limits of time and size.
    """
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401  # here once, not in every process that renders

    if len(template) > limits.TEMPLATE_CHARACTERS:
        size = len(template)
        raise InputError(
            f"chat template: {size} characters, limit {limits.TEMPLATE_CHARACTERS}", HINT
        )
    variables: dict[str, Any] = {**special_tokens, "tools": None, "documents": None}
    variables["add_generation_prompt"] = add_generation_prompt
    given = sum(len(message.content) for messages in conversations for message in messages)
    characters = limits.TEMPLATE_OUTPUT + given

    def render_all() -> str:
        texts = []
        for messages in conversations:
            dicts = [asdict(message) for message in messages]
            texts.append(_render(template, {**variables, "messages": dicts}, characters))
        return json.dumps(texts, ensure_ascii=False)

    try:
        text = bounded_call(
            render_all,
            limits.TEMPLATE_SECONDS,
            limits.TEMPLATE_MEMORY + 64 * given,
            ESCAPED_BYTES * characters,
        )
        return [str(rendered) for rendered in json.loads(text)]
    except BoundReached as error:
        raise InputError(f"chat template: {error}", HINT) from error


def _render(template: str, variables: Mapping[str, Any], characters: int) -> str:
    """Raises BoundReached: with what went wrong."""
    from jinja2.exceptions import SecurityError, TemplateError

    try:
        with _step_limits(characters):
            text = _compiled(template).render(variables)
        if len(text) > characters:
            raise _LimitReached(f"a text of more than {characters} characters")
        return text
    except _LimitReached as error:
        reason = str(error)
    except SecurityError as error:
        reason = f"reaches out of its sandbox: {error}"
    except TemplateError as error:
        line = getattr(error, "lineno", None)  # a syntax error has one
        reason = f"line {line}: {error.message}" if line else str(error.message)
    except RecursionError:
        reason = "nested too deeply"
    except MemoryError:
        reason = f"more than {limits.TEMPLATE_MEMORY >> 20} MiB of memory"
    # What a template computes can fail in every way that Python can.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    raise BoundReached(reason)


@contextmanager
def _step_limits(max_characters: int) -> Iterator[None]:
    """Where rendering has no process of its own: stop Python code of this thread that runs too
    long or makes too long a text.

    A trace function sees every line, also in loops that print nothing, works in any thread
    and system. It cannot see into single steps of C, and is slow.
    """
    if CAN_FORK:
        yield
        return
    deadline = time.monotonic() + limits.TEMPLATE_SECONDS

    def check(frame: FrameType, event: str, value: Any) -> Callable[..., Any]:
        if time.monotonic() > deadline:
            raise _LimitReached(f"still running after {limits.TEMPLATE_SECONDS:g} seconds")
        if event == "return" and isinstance(value, (str, list)) and len(value) > max_characters:
            raise _LimitReached(f"a value of more than {max_characters} items")
        return check

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)


def _check_integers(operator: str, left: Any, right: Any) -> None:
    """Refuse products and powers that would keep C busy for minutes."""
    if isinstance(left, int) and isinstance(right, int):
        factor = abs(right) if operator == "**" else 1
        if left.bit_length() * factor + right.bit_length() > limits.TEMPLATE_INTEGER_BITS:
            raise _LimitReached(f"an integer of more than {limits.TEMPLATE_INTEGER_BITS} bits")


@lru_cache(maxsize=4)
def _compiled(template: str) -> Template:
    """In the dialect of transformers: its globals, filters and the `generation` block."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """Marks the assistant's words for training; here only its content counts."""

        tags = {"generation"}  # noqa: RUF012  # as jinja declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_integers(operator, left, right)
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
        # As the models were trained on it: jinja's own filter escapes for HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)
