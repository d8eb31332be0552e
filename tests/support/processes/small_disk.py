"""A disk of a few kilobytes, in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from outcome import Outcome


def unshare_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True, timeout=20).returncode == 0


needs_unshare = pytest.mark.skipif(
    not unshare_works(), reason="unshare -rm cannot mount a tmpfs here"
)


def on_small_disk(tmp_path: Path, size: str, script: str) -> Outcome:
    """Run a shell script in a mount namespace of its own where DISK is a small tmpfs."""
    (tmp_path / "disk").mkdir()
    mount = f'mount -t tmpfs -o size={size} none "$DISK" && '
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount + script],
        env={**os.environ, "DISK": str(tmp_path / "disk"), "PYTHON": sys.executable},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
