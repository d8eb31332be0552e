"""Where a chat template runs: jinja2's sandbox, with an end to steps, sizes and integers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dsconv.convert.files import limits

from .bounded_call import CAN_FORK, BoundReached


class _LimitReached(BaseException):
    """Not an Exception: jinja swallows those while it computes constants."""


class Refused(BoundReached):
    """The template itself fails on these messages; on others it may do well."""


def render(template: str, variables: Mapping[str, Any], characters: int) -> str:
    """Raises BoundReached: with what went wrong; Refused where it may lie in the variables."""
    kind: type[BoundReached] = BoundReached
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
        kind = BoundReached if line else Refused
    except RecursionError:
        reason = "nested too deeply"
    except MemoryError:
        reason = f"more than {limits.TEMPLATE_MEMORY >> 20} MiB of memory"
    # What a template computes can fail in every way that Python can.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        kind = Refused
    raise kind(reason)


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


class _GenerationBlock(Extension):
    """Marks the assistant's words for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012  # as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_integers(operator, left, right)
        return super().call_binop(context, operator, left, right)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # As the models were trained on it: jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


@lru_cache(maxsize=4)
def _compiled(template: str) -> Template:
    """In the dialect of transformers: its globals, filters and the `generation` block."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)
