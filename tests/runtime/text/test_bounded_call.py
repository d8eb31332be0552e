"""Work in a process of its own: its answer, its failures, its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dsconv.runtime.text.bounded_call import BoundReached, bounded_call

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux copies the process")
MEMORY = 64 << 20


def call(work: Callable[[], str], seconds: float = 5, largest: int = 1000) -> str:
    return bounded_call(work, seconds, MEMORY, largest)


def wait_for_death() -> str:
    time.sleep(60)
    return ""


def refuse() -> str:
    raise BoundReached("because ü")


def die() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_the_answer_comes_back() -> None:
    assert call(lambda: "ü\ud800 x") == "ü\ud800 x"
    assert call(lambda: "") == ""
    assert call(lambda: "x" * 1000) == "x" * 1000
    big = 10_000_000
    assert len(bounded_call(lambda: "x" * big, 5, MEMORY, big)) == big


def test_it_is_another_process() -> None:
    assert call(lambda: str(os.getpid())) != str(os.getpid())


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (refuse, "because ü"),
        (die, "died of signal 9"),
        (lambda: "x" * 1001, "more than 1000 bytes"),
        # more than other tests may have left free in this process
        (lambda: str(len(bytearray(4 << 30))), "not enough memory"),
    ],
)
def test_failures_are_told(work: Callable[[], str], words: str) -> None:
    with pytest.raises(BoundReached, match=words):
        call(work)


def children() -> set[str]:
    """Processes whose parent is this one, dead ones too."""
    stats = {path.parent.name: path for path in Path("/proc").glob("[0-9]*/stat")}
    parents = {}
    for number, path in stats.items():
        with suppress(OSError):  # ended meanwhile
            parents[number] = path.read_text().rpartition(")")[2].split()[1]
    return {number for number, parent in parents.items() if parent == str(os.getpid())}


def test_it_ends_in_time_and_leaves_no_process() -> None:
    before = children()
    start = time.monotonic()
    with pytest.raises(BoundReached, match=r"still running after 0\.2 seconds"):
        call(wait_for_death, seconds=0.2)
    assert time.monotonic() - start < 1
    assert children() == before


def test_descriptors_are_closed() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for work in (lambda: "x", refuse, die):
        with suppress(BoundReached):
            call(work)
    assert sorted(os.listdir("/proc/self/fd")) == before
