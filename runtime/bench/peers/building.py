"""Run a peer's own tools, quietly, and say what went wrong where something does."""

from __future__ import annotations

import subprocess
import sys

from dsconv.errors import InputError

LAST_CHARACTERS = 300  # of what the tool said, in an error


def run_tool(module: str, *arguments: object) -> None:
    """`python -m module arguments`.

    Raises:
        InputError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = " ".join(done.stdout.split())[-LAST_CHARACTERS:]
        raise InputError(
            f"{module} failed with exit code {done.returncode}: {said}",
            "build the peer's model by hand and name its folder with --peers",
        )
