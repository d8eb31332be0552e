"""The file of answers: a line per row in the order of the rows, and a journal until it is whole.

`OUT.partial` is a folder with a journal (convert/quantize/journal.py): what the run was asked, and
the answers so far. The same command goes on with it; another one is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsconv.atomic import fsync_path, lock_path, output_error, partial_of, refuse_existing
from dsconv.convert.quantize.journal import Journal

ANSWERS = "answers.jsonl"


class Answers:
    """Those that are there, by index, and new ones as they come."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._new: list[dict[str, Any]] = []
        self.found: dict[int, dict[str, Any]] = {
            answer["index"]: answer for record in journal.records for answer in record["answers"]
        }

    def add(self, answer: dict[str, Any]) -> None:
        self.found[answer["index"]] = answer
        self._new.append(answer)
        if self._journal.due():
            self.flush()

    def flush(self) -> None:
        if self._new:
            self._journal.append({"answers": self._new}, [])
            self._new = []

    def lines(self) -> Iterator[str]:
        for _, answer in sorted(self.found.items()):
            yield json.dumps(answer, ensure_ascii=False) + "\n"


@contextmanager
def answers_file(final: Path, purpose: Mapping[str, Any], overwrite: bool) -> Iterator[Answers]:
    """`final` is there, whole, when the block ends; else what was answered is kept beside it.

    Raises:
        OutputError: `final` exists, another run's answers are there, or the disk refuses.
    """
    refuse_existing(final, overwrite, single_file=True)
    partial = partial_of(final)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = lock_path(partial)
    except OSError as error:
        raise output_error(error, final) from error
    try:
        with Journal(partial, purpose, discard=overwrite) as journal:
            answers = Answers(journal)
            try:
                yield answers
            finally:
                answers.flush()
        with (partial / ANSWERS).open("w", encoding="utf-8") as file:
            file.writelines(answers.lines())
        fsync_path(partial / ANSWERS)
        os.replace(partial / ANSWERS, final)
        fsync_path(final.absolute().parent)
        shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise output_error(error, final) from error
    finally:
        os.close(lock)
