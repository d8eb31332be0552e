"""Files of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
