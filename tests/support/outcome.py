"""How a command ended and what it said."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# What a run that takes long, on a busy machine any, says now and then where there is no terminal.
PROGRESS = re.compile(r"^.*: .*elapsed [\d:]+(, left [\d:]+)?\n", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """err: without the lines that say how far a run is."""

    code: int
    out: str
    err: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "err", PROGRESS.sub("", self.err))

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content
