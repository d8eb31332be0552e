"""Where dsconv keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def default_folder() -> Path:
    """$XDG_CACHE_HOME/dsconv, or ~/.cache/dsconv."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dsconv"
