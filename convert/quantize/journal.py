"""What a quantization run has finished, so that the same command goes on after a crash.

`journal.jsonl` lies in the output's scratch folder. Its first line says what the run was asked to
do; every further line is written after the files that it speaks of have reached the disk, and
names what is done since the line before. A line that a crash has cut off does not count. The folder
is locked by `output_folder`, so nobody else writes there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

from dsconv.atomic import empty_folder, fsync_path
from dsconv.convert.files.json_file import parse_json
from dsconv.errors import InputError, OutputError

JOURNAL = "journal.jsonl"
CHECKSUM = "crc32"
COMMIT_SHARE = 10  # at most a tenth of the time goes into keeping what is done


class Journal:
    """An open journal.

    discard: what belongs to another command is removed instead of refused.

    Raises:
        OutputError: the journal belongs to another command, or is damaged.
    """

    def __init__(self, folder: Path, purpose: Mapping[str, Any], discard: bool = False) -> None:
        self.folder = folder
        self._purpose = json.loads(json.dumps(purpose))
        self._discard = discard
        self._last = time.monotonic()
        self._flush_seconds = 0.0
        self.records: list[dict[str, Any]] = []

    def __enter__(self) -> Journal:
        entries, whole = self._read()
        different = _differences(entries[0], self._purpose) if entries else []
        if different and not self._discard:
            raise OutputError(
                f"{self.folder}: an unfinished run with {'; '.join(different)}",
                "repeat the same options to finish it, or discard it with --overwrite",
            )
        if not entries or different:
            empty_folder(self.folder)
        self._file = (self.folder / JOURNAL).open("ab")
        if not entries or different:
            self._write(self._purpose)
        else:
            self._file.truncate(whole)
            self.records = entries[1:]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def resumed(self) -> bool:
        return bool(self.records)

    def due(self) -> bool:
        """Has enough work been done since the last line to be worth another one?"""
        return time.monotonic() - self._last >= COMMIT_SHARE * self._flush_seconds

    def append(self, record: Mapping[str, Any], files: list[Path]) -> None:
        """Flush `files` to the disk, then write the line, then flush it too."""
        start = time.monotonic()
        for path in [*files, self.folder]:
            fsync_path(path)
        self._write(record)
        self.records.append(dict(record))
        self._last = time.monotonic()
        self._flush_seconds = self._last - start

    def finish(self, outputs: Collection[str]) -> None:
        """The run is complete: these files stay, everything else in the folder was scratch.

        The journal goes when all of them have reached the disk: until then a crash costs nothing.
        """
        for name in outputs:
            fsync_path(self.folder / name)
        (self.folder / JOURNAL).unlink()
        for path in self.folder.iterdir():
            if path.name not in outputs:
                path.unlink()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(_line(record) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """-> (the whole lines, their length in bytes)."""
        path = self.folder / JOURNAL
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        try:
            entries = [_record_of(line) for line in lines]
        except InputError as error:
            if self._discard:
                return [], 0
            raise OutputError(
                f"{path}: damaged: {error.message}", "start again with --overwrite"
            ) from error
        return entries, sum(len(line) + 1 for line in lines)


def _line(record: Mapping[str, Any]) -> bytes:
    """A record with a checksum: whoever goes on relies on every word of it."""
    text = json.dumps({**record, CHECKSUM: 0}, sort_keys=True).encode()
    return json.dumps({**record, CHECKSUM: crc32(text)}, sort_keys=True).encode()


def _record_of(line: bytes) -> dict[str, Any]:
    """Raises InputError: not a line as `_line` writes it."""
    entry = parse_json(line, "a line")
    record = {k: v for k, v in entry.items() if k != CHECKSUM} if isinstance(entry, dict) else {}
    if line != _line(record):
        raise InputError("a line is not what was written", "start again")
    return record


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase per setting that differs, nested ones by their path."""
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += [f"{key} {phrase}" for phrase in _differences(before, now)]
        elif before != now:
            found.append(f"{key} {before} (now {now})")
    return found
