"""Kill a command at random instants; every finished result must be the same bytes.

    python benchmarks/kill_and_resume.py RUNS KILLS SCRATCH NAME -- COMMAND ARGUMENTS

Runs `dsconv COMMAND ARGUMENTS -o SCRATCH/whole/NAME` once undisturbed, then RUNS times into
SCRATCH/killed, each of them killed by SIGKILL at KILLS random instants and started again. Examples:

    ... 5 4 /tmp/kills out -- quantize MODEL --method gptq --calibration-tokens 512
    ... 20 1 /tmp/kills out.dsq -- export QUANTIZED --format native
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path


def tree_hash(folder: Path) -> str:
    """Over names and bytes of everything below."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def lines_of(output: Path) -> int:
    journal = output.with_name(output.name + ".partial") / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def main(runs: int, kills: int, scratch: Path, name: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "dsconv", *arguments, "-o"]
    whole, place = scratch / "whole", scratch / "killed"
    output = place / name
    start = time.perf_counter()
    subprocess.run([*command, str(whole / name)], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    expected = tree_hash(whole)
    print(f"undisturbed: {seconds:.1f} s")
    chance = random.Random(0)
    equal = done = 0
    for run in range(runs):
        shutil.rmtree(place, ignore_errors=True)
        for _ in range(kills):
            process = subprocess.Popen(
                [*command, str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(chance.uniform(0.02, 1) * seconds / (0.5 + kills / 2))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
            if output.exists():
                break
        before = lines_of(output)
        if not output.exists():
            subprocess.run([*command, str(output)], check=True, capture_output=True)
        same = tree_hash(place) == expected  # nothing else is left, either
        equal += same
        print(f"run {run + 1}: {before} journal lines at the last start, equal {same}", flush=True)
    print(f"{equal} of {runs} results equal, {done} kills")


if __name__ == "__main__":
    split = sys.argv.index("--")
    runs, kills, scratch, name = sys.argv[1:split]
    main(int(runs), int(kills), Path(scratch), name, sys.argv[split + 1 :])
