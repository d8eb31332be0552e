"""Freed blocks go back to the system: what a process holds falls when they are freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from pathlib import Path
from dsconv.convert.forward.malloc import return_freed_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def churn():
    # A block of 24 MiB is freed first: from then on glibc keeps smaller ones on its heap.
    np.ones(3 << 20).sum()
    blocks = [np.ones(2 << 20) for _ in range(8)]
    keep = np.ones(1000)  # above them all
    before = resident()
    del blocks
    return before - resident(), keep

if {give_back}:
    return_freed_blocks()
freed, keep = churn()
print(freed)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_are_given_back() -> None:
    def freed(give_back: bool) -> int:
        script = SCRIPT.format(give_back=give_back)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert freed(True) > 8 * (15 << 20)
    assert freed(True) > freed(False)
