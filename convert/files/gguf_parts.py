"""The names of a GGUF model in several files: `NAME-00001-of-00003.gguf` and so on."""

from __future__ import annotations

import re

from . import limits

PART_NAME = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def part_names(name: str) -> tuple[str, ...]:
    """All parts of the model that a file is a part of, by its name; else only that."""
    match = PART_NAME.fullmatch(name)
    if match is None or not 1 <= int(match["count"]) <= limits.SHARDS:
        return (name,)
    count = int(match["count"])
    suffix = name[len(match["name"]) + len("-00001-of-00001") :]
    return tuple(f"{match['name']}-{i:05}-of-{count:05}{suffix}" for i in range(1, count + 1))
