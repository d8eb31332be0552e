"""What a build has done: per step its purpose and the hash of everything it wrote.

A step is done when it was done for the same purpose (options, hashes of its inputs, version) and
what it wrote is still there, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dsconv import __version__
from dsconv.atomic import output_file, partial_of
from dsconv.convert.files.hashes import FileHashes, artifact_files
from dsconv.convert.files.json_file import read_json_object
from dsconv.errors import InputError, OutputError

STATE = "build.json"
FORMAT_VERSION = 1


def hashes_below(output: Path, hashes: FileHashes) -> dict[str, str]:
    """Relative name -> sha256 of a file (named "") or of everything in a folder."""
    if output.is_file():
        return {"": hashes.sha256(output)}
    return hashes.of_files(artifact_files(output), output)


@dataclass(frozen=True)
class Record:
    """A step that was done. `facts` is what later runs want to know of it."""

    purpose: Mapping[str, Any]
    sha256: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)


class BuildState:
    """The records of a work folder, on the disk after every step.

    Raises:
        OutputError: the folder holds something else.
    """

    def __init__(self, folder: Path, hashes: FileHashes) -> None:
        self._hashes = hashes
        self._file = folder / STATE
        self._records: dict[str, Record] = {}
        if self._file.is_file():
            self._records = _read(self._file)
        elif os.path.lexists(folder) and not self._is_untouched(folder):
            raise OutputError(
                f"{folder}: already exists, and dsconv did not write it",
                "remove it, or choose another folder with -o",
            )

    def _is_untouched(self, folder: Path) -> bool:
        """Nothing is in it but, perhaps, the beginning of the first state."""
        first = partial_of(self._file).name
        return folder.is_dir() and all(entry.name == first for entry in folder.iterdir())

    def record(self, step: str) -> Record | None:
        return self._records.get(step)

    def facts(self, step: str) -> Mapping[str, Any]:
        record = self.record(step)
        return {} if record is None else record.facts

    def why_not_done(self, step: str, purpose: Mapping[str, Any], output: Path) -> str | None:
        """None when the step need not be done again, else the reason in words."""
        record = self.record(step)
        if record is None:
            return "not done yet"
        purpose = complete(purpose)
        if record.purpose != purpose:
            return _difference(record.purpose, purpose)
        return self._damage(record, output)

    def _damage(self, record: Record, output: Path) -> str | None:
        found = hashes_below(output, self._hashes)
        for name, digest in record.sha256.items():
            if name not in found:
                return f"{name or output.name} is missing"
            if found[name] != digest:
                return f"{name or output.name} is not what was written"
        extra = found.keys() - record.sha256.keys()
        return f"{min(extra)} was added" if extra else None

    def forget(self, step: str, output: Path) -> None:
        """Before a step is done again: its record and what it wrote."""
        self._records.pop(step, None)
        self._save()
        if output.is_dir() and not output.is_symlink():
            shutil.rmtree(output)
        else:
            output.unlink(missing_ok=True)

    def done(
        self, step: str, purpose: Mapping[str, Any], output: Path, facts: Mapping[str, Any]
    ) -> None:
        digests = hashes_below(output, self._hashes)
        self._records[step] = Record(complete(purpose), digests, facts)
        self._save()

    def _save(self) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "steps": {name: asdict(record) for name, record in self._records.items()},
        }
        with output_file(self._file, overwrite=True) as path:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def complete(purpose: Mapping[str, Any]) -> dict[str, Any]:
    """With the version, and as JSON gives it back."""
    plain = json.loads(json.dumps({"dsconv": __version__, **purpose}))
    assert isinstance(plain, dict)
    return plain


def _read(file: Path) -> dict[str, Record]:
    """A state that cannot be read is none: everything is done again."""
    try:
        content = read_json_object(file)
        if content.get("format_version") != FORMAT_VERSION:
            return {}
        return {name: Record(**record) for name, record in content["steps"].items()}
    except (InputError, KeyError, TypeError, AttributeError):
        return {}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The first thing in which two purposes differ, in words."""
    for key in [*new, *(key for key in old if key not in new)]:
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        if key == "inputs":
            return "its input has changed"
        if isinstance(before, dict) and isinstance(now, dict):
            return _difference(before, now, f"{prefix}{key}.")
        return f"{prefix}{key} was {before}, is {now}"
    raise RuntimeError("the same purpose")
