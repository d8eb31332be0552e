"""Call dsconv as its users do (a process of its own), or in this process where that is enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsconv import cli


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content


def dsconv(
    *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Outcome:
    """Run `python -m dsconv` and wait for it."""
    done = subprocess.run(
        [sys.executable, "-m", "dsconv", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


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


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """Two lines on stderr that name the cause, nothing on stdout, the promised exit code."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 2, outcome.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert len(lines[1]) > len("hint: ")
    for word in words:
        assert word in outcome.err
