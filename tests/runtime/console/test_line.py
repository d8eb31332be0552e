"""How far something is, in words."""

from __future__ import annotations

import pytest

from dsconv.runtime.console.line import Task, bar, words


def at_a_third() -> Task:
    task = Task("quantize", 3000, "weights", 100.0)
    for second in range(1, 11):
        task.advance(100, 100.0 + second)
    return task


def test_a_line_for_a_log() -> None:
    assert words(at_a_third(), 110.0) == "quantize: 33 %, 100 weights/s, elapsed 0:10, left 0:20"


def test_a_line_for_a_terminal() -> None:
    line = bar(at_a_third(), 112.0, 99, True)
    assert line == (f"quantize  {'━' * 7}{'─' * 13}  33 %  100 weights/s  elapsed 0:12, left 0:18")
    assert "#" * 7 + "-" * 13 in bar(at_a_third(), 112.0, 99, False)


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal(width: int) -> None:
    assert len(bar(at_a_third(), 110.0, width, True)) <= width


def test_nothing_is_guessed_before_something_is_done() -> None:
    assert words(Task("load", 0, "", 5.0), 7.0) == "load: elapsed 0:02"
    assert words(Task("load", 10, "files", 5.0), 7.0) == "load: 0 %, elapsed 0:02"
    at_once = Task("load", 10, "files", 5.0)
    at_once.advance(1, 5.0)
    assert words(at_once, 5.0) == "load: 10 %, elapsed 0:00"


def test_the_rate_is_that_of_late() -> None:
    task = Task("download", 10_000, "B", 0.0)
    for second in range(1, 101):
        task.advance(10, float(second))
    for second in range(101, 141):
        task.advance(100, float(second))
    assert task.rate() == pytest.approx(100, rel=0.25)


def test_what_came_before_is_not_counted() -> None:
    task = Task("quantize", 100, "weights", 0.0, preceded=60.0)
    task.advance(10, 61.0)
    assert task.rate() == 10
    assert task.left(61.0) == 9


def test_more_than_was_announced() -> None:
    task = Task("download", 10, "B", 0.0)
    task.advance(15, 1.0)
    assert words(task, 1.0) == "download: 100 %, 15 B/s, elapsed 0:01, left 0:00"
