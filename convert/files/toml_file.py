"""TOML that somebody has written by hand."""

from __future__ import annotations

import sys
from typing import Any

from dsconv.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse_toml(content: str | bytes, problem: str, hint: str) -> dict[str, Any]:
    """
    Raises:
        InputError: `problem`, and why it is not TOML.
    """
    try:
        return tomllib.loads(content if isinstance(content, str) else content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits too
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{problem}: {reason}", hint) from error
