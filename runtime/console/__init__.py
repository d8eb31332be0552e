"""What people see beside the result: lines and progress on stderr, numbers in their words.

level     how much is said: quiet, normal, verbose
line      the words of a line that says how far something is
screen    the one line at the foot of a terminal, or plain lines in a log
speech    what the rest of the code calls: progress, working, say, detail
units     numbers, sizes and times as people write them
"""

from .speech import detail, progress, say, working
from .units import (
    BARS,
    clock_text,
    count_text,
    parse_size,
    rate_text,
    size_text,
    sparkline,
    time_text,
)

__all__ = [
    "BARS",
    "clock_text",
    "count_text",
    "detail",
    "parse_size",
    "progress",
    "rate_text",
    "say",
    "size_text",
    "sparkline",
    "time_text",
    "working",
]
