"""What stands on a terminal, and what in a log, while something is going on."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import write_checkpoint

from dsconv.runtime.console import detail, progress, say, screen, working
from dsconv.runtime.console.level import Level, at_level


class Terminal(io.StringIO):
    """Keeps what stands on the lines of a terminal of 80 columns."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        shown = []
        for line in self.getvalue().split("\n"):
            cells = ""
            for part in line.split("\r"):
                cells = part + cells[len(part) :]
            shown.append(cells.rstrip())
        return shown


def on(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal that stdout and stderr lead to."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(screen, "TICK", 0.02)
    return terminal


def test_the_line_goes_and_what_was_said_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on(monkeypatch)
    with working("quantize"):
        assert "quantize" in terminal.getvalue()
        say("a note")
        with progress("layers", 4, "layers") as advance:
            advance(1)
            time.sleep(0.1)
            assert "25 %" in terminal.lines()[-1]
        print("the result")
    assert terminal.lines() == ["a note", "the result", ""]
    assert sys.stdout is terminal


def test_a_bar_is_not_hidden_by_something_without_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on(monkeypatch)
    with working("verify"), progress("texts", 4, "texts") as advance:
        advance(1)
        with working("load"):
            time.sleep(0.1)
            assert terminal.lines()[-1].startswith("texts")


def test_a_streamed_answer_is_not_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on(monkeypatch)
    with working("run"):
        for word in ("one", " two", " three"):
            print(word, end="", flush=True)
            time.sleep(0.06)
        print()
        time.sleep(0.06)
        assert terminal.lines() == ["one two three", ""]


def test_quiet_and_verbose(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on(monkeypatch)
    with at_level(Level.QUIET), working("x"), progress("y", 2, "z") as advance:
        advance(1)
        say("a note")
        detail("a step")
    assert terminal.getvalue() == ""
    detail("a step")
    say("a note")
    with at_level(Level.VERBOSE):
        detail("a step")
    assert terminal.lines() == ["a note", "a step", ""]


def test_an_error_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on(monkeypatch)
    with pytest.raises(ValueError, match="wrong"), working("x"), progress("y", 2, "z"):
        raise ValueError("wrong")
    assert terminal.lines() == [""]


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("TICK", 0.01), ("FIRST", 0.1), ("OFTEN", 0.1), ("SELDOM", 60.0)):
        monkeypatch.setattr(screen, name, value)
    with progress("quantize", 100, "weights") as advance:
        for _ in range(50):
            advance(1)
            time.sleep(0.01)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert 1 <= len(lines) <= 5
    shape = r"quantize: \d+ %, .* weights/s, elapsed \d:\d\d, left \d:\d\d"
    assert all(re.fullmatch(shape, line) for line in lines)


def test_a_log_gets_nothing_of_what_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with working("quantize"), progress("layers", 2, "layers") as advance:
        advance(2)
    assert capsys.readouterr().err == ""


def on_a_terminal(*command: object) -> Iterator[tuple[float, bytes]]:
    """Seconds since the start, and what came then."""
    ours, theirs = pty.openpty()
    start = time.monotonic()
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-m", "dsconv", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=environment,
    ):
        os.close(theirs)
        while True:
            try:
                read = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            yield time.monotonic() - start, read
    os.close(ours)


def test_something_is_on_the_screen_before_the_libraries(tmp_path: Path) -> None:
    """The first byte comes while torch is imported, and then the line moves."""
    model = write_checkpoint(tmp_path / "model")
    told = list(on_a_terminal("quantize", model, "-o", tmp_path / "q", "--calibration-tokens", 512))
    text = b"".join(part for _, part in told).decode()
    first, before_libraries = told[0]
    assert first < 0.6 * told[-1][0]
    assert before_libraries.decode().strip().startswith("quantize")
    assert re.search(r"calibration text .* % .* tokens/s +elapsed 0:\d\d, left 0:\d\d", text)
    assert text.rstrip().splitlines()[-1].startswith(str(tmp_path / "q"))
