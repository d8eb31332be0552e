"""Peak memory of this process."""

from __future__ import annotations

import sys


def peak_rss_bytes() -> int:
    """Largest resident set so far, file pages included; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
