"""Virtual environments with one execution provider's wheel each, to run and test dsconv there.

python scripts/provider_environment.py openvino              makes it, prints its python
python scripts/provider_environment.py openvino dsconv …     runs dsconv of this folder in it
python scripts/provider_environment.py openvino qnn test …   runs the tests marked `provider`
python scripts/provider_environment.py all test -m provider  … those marked `slow` too

Wheels of ONNX Runtime overwrite each other, so each has an environment of its own, kept under
$XDG_CACHE_HOME/dsconv/providers. It holds wheels only: dsconv comes from the folder of this script
through PYTHONPATH, so several checkouts may share it. No torch is in it: sessions of ONNX graphs do
without. `test` leaves out a provider whose wheels no package index offers, and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What dsconv imports on its way to an ONNX session, to doctor, and to a reference in GGUF.
LIBRARIES = ["onnx", "ml_dtypes", "safetensors", "tokenizers", "jinja2", "typer", "rich", "gguf"]
WHEELS = {
    "openvino": ["onnxruntime-openvino==1.24.1"],
    "qnn": ["onnxruntime==1.31.1", "onnxruntime-qnn==2.7.0"],
    "cuda": ["onnxruntime-gpu==1.31.1"],  # without a driver: how it fails
    "cann": ["onnxruntime-cann==1.24.4", "numpy<2"],
}
# pip's words when it reached no index at all, or one without any version of a package.
NO_INDEX = ("(from versions: none)", "Connection", "Temporary failure in name resolution")


class NotOffered(Exception):
    """No package index that pip reaches has the wheels."""


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dsconv" / "providers"


def python_of(name: str) -> Path:
    """Of the environment, which may not have been made."""
    folder = "Scripts" if os.name == "nt" else "bin"
    return cache() / name / folder / "python"


def is_complete(name: str) -> bool:
    marker = _marker(name)
    return marker.exists() and marker.read_text() == _wanted(name)


def make(name: str) -> Path:
    """Make the environment once -> its python. A marker says that it is complete.

    Raises:
        NotOffered: pip finds no such wheels.
    """
    python = python_of(name)
    if is_complete(name):
        return python
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", "--clear", cache() / name], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    wanted = _wanted(name).splitlines()
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode and any(words in done.stderr for words in NO_INDEX):
        raise NotOffered(f"{name}: pip finds no {', '.join(WHEELS[name])}")
    done.check_returncode()
    _marker(name).write_text(_wanted(name))
    print(f"{name}: made in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return python


def _marker(name: str) -> Path:
    return cache() / name / "complete.txt"


def _wanted(name: str) -> str:
    return "\n".join([*LIBRARIES, *WHEELS[name]])


def with_dsconv() -> Mapping[str, str]:
    """Environment variables with which an environment's python imports dsconv from this folder."""
    link = ROOT / "build" / "package" / "dsconv"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(Path("..") / "..", target_is_directory=True)
    return {**os.environ, "PYTHONPATH": str(link.parent)}


def test(names: Sequence[str], arguments: Sequence[str]) -> int:
    """-> pytest's exit code; 0 where there is nothing to test on."""
    made = []
    for name in names:
        try:
            make(name)
            made.append(name)
        except NotOffered as reason:
            print(f"SKIPPED the tests on {reason}")
    if not made:
        return 0
    pytest = [sys.executable, "-m", "pytest", "-m", "provider and not slow", "-rs"]
    files = sorted(ROOT.glob("tests/**/test_real_*.py"))
    pytest += ["-k", " or ".join(made), *arguments, *map(str, files)]
    return subprocess.run(pytest, cwd=ROOT).returncode


def main(arguments: Sequence[str]) -> int:
    every = list(WHEELS) if arguments[:1] == ["all"] else []
    names = every or list(takewhile(WHEELS.__contains__, arguments))
    task, *rest = arguments[1 if every else len(names) :] or [""]
    if names and task == "test":
        return test(names, rest)
    if len(names) == 1 and task == "dsconv":
        command = [make(names[0]), "-m", "dsconv", *rest]
        return subprocess.run(command, env=with_dsconv()).returncode
    if not names or task:
        sys.exit(f"{__doc__}\nproviders: {', '.join(WHEELS)}")
    for name in names:
        print(make(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
