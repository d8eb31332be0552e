"""A process that has imported everything and forks one child per command: no start to wait for.

Run by forked.py; requests and answers are lines of JSON on stdin and stdout. A child runs one
command line of dsconv, and ends as the process of a user would. It can be told to die at the n-th
step that changes the disk below a folder, without any tool of the system.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from dsconv import atomic, cli

# What commands import when they need it, imported once, here, and never used before the fork.
# (onnxruntime is not: it starts threads.)
OF_OTHERS = ("torch", "onnx", "onnx_ir", "gguf", "tokenizers", "typer._adapters")

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
KILLED = 137
# What a child pretends, by variables of its environment.
TWO_RENAMES = "DSCONV_TEST_TWO_RENAMES"  # as on file systems where names cannot be exchanged
DAYS = "DSCONV_TEST_DAYS"  # so many days later
CORES = "DSCONV_TEST_CORES"  # as on a machine with so many


class CrashPoint:
    """Ends the process before the n-th change below `folder`, or counts them all."""

    def __init__(self, folder: str, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self.count = 0

    def install(self) -> None:
        sys.addaudithook(self._audit)
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            self._step(os.readlink(f"/proc/self/fd/{descriptor}") if LINUX else self._folder)
            flush(descriptor)

        os.fsync = fsync

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITING):
            self._step(arguments[0])

    def _step(self, path: object) -> None:
        if not isinstance(path, str | os.PathLike):
            return  # a descriptor: its file was counted when it was opened
        if os.path.abspath(os.fspath(path)).startswith(self._folder):
            self.count += 1
            if self.count == self._limit:
                os._exit(KILLED)


LINUX = sys.platform == "linux"


def wait_for_tracer() -> None:
    if LINUX:
        import ctypes

        ctypes.CDLL(None).prctl(0x59616D61, -1)  # PR_SET_PTRACER: anybody may trace this process
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        time.sleep(0.002)


def disguise(environment: dict[str, str]) -> None:
    if TWO_RENAMES in environment:
        atomic._exchange = lambda one, other: False
    if CORES in environment:
        os.cpu_count = lambda: int(environment[CORES])
    if DAYS in environment:
        seconds, clock = 86400 * int(environment[DAYS]), time.time
        time.time = lambda: clock() + seconds
        time.time_ns = lambda: int(1e9 * (clock() + seconds))
        time.tzset()


def run(request: dict[str, Any]) -> None:
    """One command, then the end of the process; the half second of Python's own end is saved."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, (name, flags) in enumerate(
        [
            (os.devnull, os.O_RDONLY),
            (request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (request["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ]
    ):
        descriptor = os.open(name, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["dsconv", *request["arguments"]]
    point = CrashPoint(request["below"], request["crash_at"]) if request["below"] else None
    if point is not None:
        point.install()
    disguise(request["environment"])
    if request["traced"]:
        wait_for_tracer()
    code: object = 70
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    if point is not None:
        print(point.count)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0)


def import_everything() -> None:
    for name in OF_OTHERS:
        import_module(name)
    for part in ("dsconv.quant", "dsconv.convert", "dsconv.runtime"):
        for module in walk_packages(import_module(part).__path__, f"{part}."):
            if ".peers." not in module.name:  # which need what may not be installed
                import_module(module.name)


def main() -> None:
    import_everything()
    answers = os.fdopen(os.dup(1), "w")
    print(len(os.listdir("/proc/self/task")) if LINUX else 1, file=answers, flush=True)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            return run(request)
        print(child, file=answers, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, file=answers, flush=True)


if __name__ == "__main__":
    main()
