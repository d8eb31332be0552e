"""How far `dsconv plan` is from what `dsconv quantize` then takes on this machine.

    python benchmarks/plan_accuracy.py SCRATCH MODEL [OPTION ...] [-- MODEL [OPTION ...]] ...

Each MODEL with its OPTIONs of quantize is planned and then quantized in a process of its own,
ROUNDS times, in turns. Printed are medians: seconds that plan said, seconds from the start of the
command to its end, their ratio; with what plan said of each step.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROUNDS = 3


def dsconv(*arguments: str) -> str:
    command = [sys.executable, "-m", "dsconv", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def one_round(case: Sequence[str], scratch: Path) -> tuple[dict[str, float], float]:
    """-> (seconds of each step, as planned; seconds that the command took)."""
    planned = json.loads(dsconv("plan", *case, "--json"))
    output = scratch / "quantized"
    start = time.perf_counter()
    dsconv("quantize", *case, "--overwrite", "-o", str(output))
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return {step["name"]: step["seconds"] for step in planned["steps"]}, seconds


def main(scratch: Path, cases: list[list[str]]) -> None:
    scratch.mkdir(exist_ok=True)
    found: list[list[tuple[dict[str, float], float]]] = [[] for _ in cases]
    for _ in range(ROUNDS):
        for case, rounds in zip(cases, found, strict=True):
            rounds.append(one_round(case, scratch))
    for case, rounds in zip(cases, found, strict=True):
        planned = statistics.median(sum(steps.values()) for steps, _ in rounds)
        measured = statistics.median(seconds for _, seconds in rounds)
        names = rounds[0][0]
        parts = ", ".join(
            f"{name} {statistics.median(steps[name] for steps, _ in rounds):.2f}" for name in names
        )
        print(f"{' '.join(case)}\n  planned {planned:.1f} s, measured {measured:.1f} s, ", end="")
        print(f"ratio {planned / measured:.2f} ({parts})", flush=True)


if __name__ == "__main__":
    groups = itertools.groupby(sys.argv[2:], key=lambda word: word == "--")
    main(Path(sys.argv[1]), [list(words) for is_mark, words in groups if not is_mark])
