"""Commands of dsconv in forked children: started at once, killed and disturbed at will."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pytest
from outcome import Outcome

SERVER = Path(__file__).with_name("fork_server.py")
PATIENCE = 120.0  # seconds that a command may take


@dataclass
class Running:
    """A command that has been started."""

    pid: int
    server: ForkServer
    strace: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def wait(self) -> Outcome:
        too_long = threading.Timer(PATIENCE, os.kill, (self.pid, signal.SIGKILL))
        too_long.start()
        try:
            code = self.server.answer()
        finally:
            too_long.cancel()
        if self.strace is not None:
            self.strace.wait(timeout=PATIENCE)
        out, err = (path.read_text("utf-8", errors="replace") for path in self.server.streams)
        return Outcome(code, out, err)


@dataclass
class ForkServer:
    """scratch: a folder for what the commands print; prefix: a command that starts the server."""

    scratch: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()

    @property
    def streams(self) -> tuple[Path, Path]:
        return self.scratch / "stdout", self.scratch / "stderr"

    def __enter__(self) -> ForkServer:
        quiet = {
            "OPENBLAS_NUM_THREADS": "1",  # the threads of more would not survive the fork
            "OMP_NUM_THREADS": "2",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(self.scratch / "cache"),
        }
        self._variables = {**os.environ, **quiet, **self.environment}
        self._process = subprocess.Popen(
            [*self.prefix, sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._variables,
            text=True,
        )
        assert self.answer() == 1, "a thread before the fork"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=PATIENCE)

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def start(
        self,
        *arguments: object,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        crash_at: int = 0,
        below: Path | None = None,
        strace: Sequence[str] = (),
    ) -> Running:
        """Start a command.

        environment: what is added to the server's; variables: all there are, instead of those.
        below, crash_at: die before the n-th change of the disk below a folder; 0 counts them (the
        count is the last line of stdout). strace: options of it, to trace the command with.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or self.scratch),
            "environment": {**(variables or self._variables), **(environment or {})},
            "crash_at": crash_at,
            "below": str(below) if below else "",
            "traced": bool(strace),
            "out": str(self.streams[0]),
            "err": str(self.streams[1]),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        running = Running(self.answer(), self)
        if strace:
            running.log = self.scratch / "strace.log"
            command = ["strace", "-f", "-qq", "-o", str(running.log), *strace]
            running.strace = subprocess.Popen([*command, "-p", str(running.pid)])
        return running

    def run(self, *arguments: object, **how: object) -> Outcome:
        return self.start(*arguments, **how).wait()  # type: ignore[arg-type]


def strace_works() -> bool:
    """Can it attach to a process and change what its calls do?"""
    if shutil.which("strace") is None:
        return False
    with subprocess.Popen(["sleep", "0.3"]) as process:
        options = ["-qq", "-e", "inject=clock_nanosleep,nanosleep:signal=SIGKILL"]
        attach = ["strace", *options, "-p", str(process.pid)]
        done = subprocess.run(attach, capture_output=True, timeout=20)
    return done.returncode in (0, 137) and b"Operation not permitted" not in done.stderr


needs_strace = pytest.mark.skipif(
    not strace_works(), reason="strace is missing, or may not attach to processes here"
)
