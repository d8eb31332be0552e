"""The machine during a benchmark: how fast it reads memory, and how much of it others use.

Bandwidth: each thread takes the largest element of its part of a buffer far larger than the caches.
NumPy does that with vector loads and little arithmetic and without the interpreter's lock; on 2
cores of an AMD EPYC it reads as fast as a loop of AVX-512 loads in C. Load: from /proc/stat.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsconv.runtime.memory import machine_memory_bytes

BUFFER_BYTES = 1 << 29
PASSES = 8
STATISTICS = Path("/proc/stat")
# Of the line "cpu": user, nice, system, idle, iowait, irq, softirq, steal (taken by the host).
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)


class ReadProbe:
    """A buffer of 512 MiB, or a sixteenth of the machine's memory where that is less."""

    def __init__(self, threads: int, size: int | None = None) -> None:
        memory = machine_memory_bytes()
        size = size or (min(BUFFER_BYTES, memory // 16) if memory else BUFFER_BYTES)
        buffer = mmap.mmap(-1, size // mmap.PAGESIZE * mmap.PAGESIZE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            buffer.madvise(mmap.MADV_HUGEPAGE)
        self._values = np.frombuffer(buffer, np.int32)
        self._values[:] = 1  # unwritten pages would all be one page of zeros
        self._parts = np.array_split(self._values, threads)
        self._threads = ThreadPoolExecutor(threads)

    def bytes_per_second(self) -> float:
        """Median over some passes."""
        rates = []
        for _ in range(PASSES):
            start = time.perf_counter()
            list(self._threads.map(np.max, self._parts))
            rates.append(self._values.nbytes / (time.perf_counter() - start))
        return statistics.median(rates)


@dataclass(frozen=True)
class MachineTime:
    """Processor seconds that all processes together have used, of `cpus` processors."""

    busy: float
    wall: float
    cpus: int

    def foreign_share(self, earlier: MachineTime, own: float) -> float:
        """Share of the machine, 0 to 1, that went to others since `earlier`.

        own: processor seconds of ours meanwhile. The kernel counts in ticks of usually 10 ms per
        processor, so over less than a few tenths of a second the share means little.
        """
        available = (self.wall - earlier.wall) * self.cpus
        others = max(0.0, self.busy - earlier.busy - own)
        return min(1.0, others / available) if available > 0 else 0.0


def machine_time() -> MachineTime | None:
    """Now; None where the system does not tell."""
    try:
        text = STATISTICS.read_text("ascii")
    except OSError:
        return None
    return parse_statistics(text, os.sysconf("SC_CLK_TCK"), time.perf_counter())


def parse_statistics(text: str, ticks_per_second: int, wall: float) -> MachineTime | None:
    """Of the text of /proc/stat."""
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    if not lines or len(lines[0]) < 9:
        return None
    total = [int(field) for field in lines[0][1:]]
    busy = sum(total[index] for index in BUSY_FIELDS) / ticks_per_second
    return MachineTime(busy, wall, max(1, len(lines) - 1))
