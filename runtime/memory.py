"""Peak memory of this process, and how much the machine has."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

# Of the control group in which a container runs: version 2, version 1.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def peak_rss_bytes() -> int:
    """Largest resident set so far, file pages included."""
    try:  # what getrusage tells can be the peak of the process that started this one
        status = Path("/proc/self/status").read_text("ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def resident_bytes() -> int:
    """Resident set now, file pages included; the largest so far where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return peak_rss_bytes()
    return pages * resource.getpagesize()


def machine_memory_bytes() -> int:
    """What this process may use at most: the machine's memory, or less where a container says so.

    0 where the system does not tell.
    """
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):  # Windows, or an odd system
        return 0
    for path in CONTAINER_LIMITS:
        try:
            found.append(int(path.read_text("ascii")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(found)


def free_memory_bytes() -> int:
    """What processes could take now without swapping; a quarter of the machine's memory where the
    system does not tell, 1 GiB where it tells nothing."""
    machine = machine_memory_bytes()
    try:
        lines = Path("/proc/meminfo").read_text("ascii", errors="replace").splitlines()
        found = {name: value for name, _, value in (line.partition(":") for line in lines)}
        free = int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, IndexError, ValueError):
        return machine // 4 or 1 << 30
    return min(free, machine) if machine else free
