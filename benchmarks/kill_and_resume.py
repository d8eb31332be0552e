"""Kill a quantization at random instants; every finished result must be the same bytes.

    python benchmarks/kill_and_resume.py RUNS KILLS SCRATCH -- QUANTIZE_ARGUMENTS

Runs `dsconv quantize QUANTIZE_ARGUMENTS` once undisturbed, then RUNS times, each of them killed by
SIGKILL at KILLS random instants and started again. Example arguments:
MODEL --bits 4 --calibration text.jsonl --calibration-tokens 2048
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path


def folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def lines_of(output: Path) -> int:
    journal = output.with_name(output.name + ".partial") / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def main(runs: int, kills: int, scratch: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "dsconv", "quantize", *arguments, "-o"]
    whole, output = scratch / "whole", scratch / "killed"
    start = time.perf_counter()
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    expected = folder_hash(whole)
    print(f"undisturbed: {seconds:.1f} s")
    chance = random.Random(0)
    equal = done = 0
    for run in range(runs):
        shutil.rmtree(output, ignore_errors=True)
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
        same = folder_hash(output) == expected
        equal += same
        print(f"run {run + 1}: {before} journal lines at the last start, equal {same}", flush=True)
    print(f"{equal} of {runs} results equal, {done} kills")


if __name__ == "__main__":
    split = sys.argv.index("--")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[split + 1 :])
