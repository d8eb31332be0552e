"""Call dsconv as its users do (a process of its own), or in this process where that is enough."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from outcome import Outcome as Outcome
from processes.forked import PATIENCE, ForkServer

from dsconv import cli


def dsconv(
    *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Outcome:
    """Run a command in a process of its own, forked from one that has everything imported."""
    if sys.platform != "linux":
        return fresh_dsconv(*arguments, environment=environment, cwd=cwd)
    variables = {**os.environ, **(environment or {})}
    return _server().run(*arguments, variables=variables, cwd=cwd or Path.cwd())


def fresh_dsconv(
    *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Outcome:
    """Run `python -m dsconv` and wait for it: for tests of how it starts and what it imports."""
    done = subprocess.run(
        [sys.executable, "-m", "dsconv", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@cache
def _server() -> ForkServer:
    return ForkServer(Path(tempfile.mkdtemp(prefix="dsconv-tests-"))).__enter__()


def stop_server() -> None:
    """At the end of a session of tests."""
    if _server.cache_info().currsize:
        _server().__exit__(None, None, None)
        shutil.rmtree(_server().scratch)
        _server.cache_clear()


def call_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> Outcome:
    """Run `dsconv.cli.main` in this process."""
    monkeypatch.setattr(sys, "argv", ["dsconv", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    captured = capsys.readouterr()
    code = exit_info.value.code
    return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)


KINDS = {
    2: "usage",
    3: "input",
    4: "unsupported",
    5: "download",
    6: "output",
    7: "provider",
    70: "bug",
}


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """Two lines on stderr that name the cause, and the promised exit code.

    On stdout nothing, or, where --json was asked for, the same as an object.
    """
    assert outcome.code == code, outcome.err
    if outcome.out:
        error = outcome.json.pop("error")
        assert (error["exit_code"], error["kind"]) == (code, KINDS[code])
        assert f"error: {error['message']}\nhint: {error['hint']}\n" == outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 2, outcome.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert len(lines[1]) > len("hint: ")
    for word in words:
        assert word in outcome.err
