"""Time and memory from a calibration file to its windows, by the number of its rows.

    python benchmarks/calibration_files.py MODEL FOLDER [TOKENS] [ROWS ...]

Writes conversations of random words to FOLDER (for 200,000 rows about 400 MB), as lines, as one
array, and as prose, and reads each in a process of its own. The time is that of hashing the file
and of making the windows, without the start of Python; the memory is beyond what the process had
before.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dsconv.convert.open import open_checkpoint
from dsconv.runtime.calibration.text_windows import (
    CalibrationOptions,
    CalibrationSource,
    calibration_windows,
)
from dsconv.runtime.memory import peak_rss_bytes

WORDS = ("the cat", "sat on", "a warm", "stone by", "the river", "while boats", "went under", "it")
FORMS = ("lines", "array", "prose")


def rows(count: int) -> Iterator[str]:
    source = random.Random(0)
    for _ in range(count):
        words = [source.choice(WORDS) for _ in range(source.randint(40, 700))]
        turns = [
            {"role": "user", "content": " ".join(words[:30])},
            {"role": "assistant", "content": " ".join(words[30:])},
        ]
        yield json.dumps({"messages": turns})


def write(path: Path, form: str, count: int) -> None:
    before, between, after = {"array": ("[", ", ", "]")}.get(form, ("", "\n", "\n"))
    with path.open("w", encoding="utf-8") as file:
        file.write(before)
        for index, row in enumerate(rows(count)):
            text = row
            if form == "prose":
                text = "\n".join(turn["content"] for turn in json.loads(row)["messages"])
            file.write(f"{between if index else ''}{text}")
        file.write(after)


def measure(model: str, path: Path, tokens: int) -> None:
    checkpoint = open_checkpoint(model)
    options = CalibrationOptions((CalibrationSource(path),), tokens)
    memory, start = peak_rss_bytes(), time.perf_counter()
    options.purpose()
    windows = calibration_windows(checkpoint, options)
    seconds = time.perf_counter() - start
    print(
        f"{path.name:<20} {path.stat().st_size / 1e6:7.1f} MB  {sum(map(len, windows)):7} tokens  "
        f"{seconds:6.2f} s  {(peak_rss_bytes() - memory) / 2**20:6.0f} MiB",
        flush=True,
    )


def main(model: str, folder: Path, tokens: int, counts: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for count in counts:
        for form in FORMS:
            path = folder / f"{form}_{count}"
            if not path.exists():
                write(path, form, count)
            one = ["--measure", model, str(path), str(tokens)]
            subprocess.run([sys.executable, __file__, *one], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        given = [int(text) for text in sys.argv[3:]] or [32768]
        main(sys.argv[1], Path(sys.argv[2]), given[0], given[1:] or [1000, 20_000, 200_000])
