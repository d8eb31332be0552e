"""Where a prompt comes from: the command line, a file, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from dsconv.errors import InputError, UsageError

from .text_file import read_text_file

STDIN = "-"
MAX_BYTES = 64 << 20  # more than any context takes


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The one prompt that was given; standard input, where none was and it is no terminal.

    Raises:
        UsageError: two, or none.
        InputError: it cannot be read, or is not UTF-8.
    """
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file are two prompts", "use one of them")
    if file is not None and str(file) != STDIN:
        return _without_last_newline(read_text_file(file))
    if prompt is not None and prompt != STDIN:
        return prompt
    if prompt is None and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise _no_prompt()
    try:
        text = sys.stdin.buffer.read(MAX_BYTES + 1)
    except (OSError, AttributeError) as error:  # closed, or not there at all
        raise _no_prompt() from error
    if len(text) > MAX_BYTES:
        raise InputError(f"standard input: more than {MAX_BYTES} bytes", "use a shorter prompt")
    return _without_last_newline(_decoded(text))


def _no_prompt() -> UsageError:
    return UsageError(
        "there is no prompt", 'ask with --prompt "your question", --prompt-file FILE, or --chat'
    )


def lines_of_stdin(show_mark: bool) -> Iterator[str]:
    """One message per line, until the end of the input; empty lines are passed over."""
    if sys.stdin is None:
        return
    first = True
    while True:
        if show_mark:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline(MAX_BYTES)
        if not line:
            return
        text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if first else line).strip("\r\n")
        first = False
        if text.strip():
            yield text


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input: not UTF-8 text: {error.reason} at byte {error.start}",
            "convert it first",
        ) from error


def _without_last_newline(text: str) -> str:
    """Editors and echo end a text with one that nobody typed as part of it."""
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
