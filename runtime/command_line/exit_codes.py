"""From a command that fails to two lines on stderr and an exit code; with --json an object too."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from dsconv.errors import (
    DsconvError,
    ProviderError,
    UnsupportedError,
    UsageError,
    VerdictFailed,
)

from .signals import ending_in_time

# Older versions of typer use the package click, newer ones a copy: take the class they export.
_CLICK_ERROR: Any = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

NOBODY_READS = 141  # as a shell says of a process that SIGPIPE ended


def exit_code_of(run: Callable[[], Any]) -> int:
    """Run a command; turn every failure into words and an exit code (see errors.py)."""
    _prepare_streams()
    try:
        with ending_in_time():
            code = run()
    except DsconvError as error:
        return _fail(error)
    except _CLICK_ERROR as error:
        return _fail_usage(error)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except SystemExit as end:  # of rich, which prints tables
        if isinstance(end.__context__, BrokenPipeError):
            return NOBODY_READS
        raise
    except ModuleNotFoundError as error:
        return _fail_missing(error)
    except MemoryError:
        return _fail(UnsupportedError("not enough memory", "use a machine with more memory"))
    except Exception as error:
        return _report_bug(error)
    return code if isinstance(code, int) else 0


def _fail(error: DsconvError) -> int:
    """Two lines on stderr: what went wrong, and the cure."""
    message, hint = (" ".join(text.split()) for text in (error.message, error.hint))
    if _wants_json() and not isinstance(error, VerdictFailed):  # whose result is printed
        content = {
            "message": message,
            "hint": hint,
            "exit_code": error.exit_code,
            "kind": error.kind,
        }
        print(json.dumps({"error": content}, ensure_ascii=True, indent=2), flush=True)
    print("error: " + message, file=sys.stderr)
    print("hint: " + hint, file=sys.stderr)
    return error.exit_code


def _wants_json() -> bool:
    """By the words of the command line: it may be these that are wrong."""
    words = sys.argv[1:]
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _fail_usage(error: Any) -> int:
    """What click says of the command line; a command line without a command gets the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return UsageError.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "dsconv"
    return _fail(UsageError(error.format_message(), _misplaced(error) or f"see {command} --help"))


def _misplaced(error: Any) -> str | None:
    """The hint for an option before the command that commands have."""
    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    commands = getattr(context and context.command, "commands", {})
    if any(name in parameter.opts for command in commands.values() for parameter in command.params):
        return f"put {name} behind the command: dsconv COMMAND {name}"
    return None


def _fail_missing(error: ModuleNotFoundError) -> int:
    """A dependency that is not installed; a module of our own that is missing is a bug."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "dsconv"):
        return _report_bug(error)
    missing = f"package {package!r} is not installed"
    return _fail(ProviderError(missing, f"pip install {package}"))


def _report_bug(error: Exception) -> int:
    """A traceback helps us, not the user: it goes to a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="dsconv-bug-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    name = type(error).__name__
    bug = DsconvError(f"a bug in dsconv: {name}: {error}", f"please report it with {file.name}")
    return _fail(bug)


def _prepare_streams() -> None:
    """Text that the terminal lacks is shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
