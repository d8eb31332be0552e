"""Text that the user gives."""

from __future__ import annotations

from pathlib import Path

from dsconv.errors import InputError


def read_text_file(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        InputError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}", "check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason}", "convert it first") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty", "use a file with some text")
    return text
