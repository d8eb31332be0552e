"""Time, memory and bytes of quantize and export.

    python benchmarks/convert_cost.py CHECKPOINT SCRATCH_FOLDER

Each step is the command line in a process of its own; peak memory is what the system saw of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STEPS = (
    (
        "quantize --method search",
        ["quantize", "{model}", "--method", "search", "-o", "{scratch}/int4"],
    ),
    ("quantize --bits 8", ["quantize", "{model}", "--bits", "8", "-o", "{scratch}/int8"]),
    ("export int4 (contrib)", ["export", "{scratch}/int4", "-o", "{scratch}/int4-contrib"]),
    (
        "export int4 (std24)",
        ["export", "{scratch}/int4", "--dialect", "std24", "-o", "{scratch}/int4-std24"],
    ),
    ("export unquantized", ["export", "{model}", "-o", "{scratch}/float-contrib"]),
)


def run(arguments: list[str]) -> tuple[dict[str, float], int]:
    """-> (the command's JSON, peak resident bytes of its process)."""
    command = [sys.executable, "-m", "dsconv", *arguments, "--overwrite", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(text), usage.ru_maxrss * 1024


def main(model: str, scratch: Path) -> None:
    print(f"{'step':24}{'seconds':>9}{'peak MiB':>10}{'written MB':>12}{'source MB/s':>13}")
    for name, template in STEPS:
        report, peak = run([part.format(model=model, scratch=scratch) for part in template])
        written = report.get("bytes_written", report.get("size_bytes", 0)) / 1e6
        rate = report.get("source_bytes_per_second")
        speed = f"{rate / 1e6:.0f}" if rate else ""
        seconds = report["seconds"]
        print(f"{name:24}{seconds:9.1f}{peak / 2**20:10.0f}{written:12.2f}{speed:>13}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
