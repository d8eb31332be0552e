"""How much of the machine others used while something was measured, from /proc/stat."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STATISTICS = Path("/proc/stat")
# Of the line "cpu": user, nice, system, idle, iowait, irq, softirq, steal (taken by the host).
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)


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
