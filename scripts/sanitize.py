"""Run the native engine's tests under the address and undefined-behaviour sanitizers.

python scripts/sanitize.py [PYTEST ARGUMENTS]

Compiles the extension into a copy of the package with GCC or Clang on Linux; any finding ends the
run. Without arguments: all native tests, the fast ones.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -O1 -g"
IGNORED = shutil.ignore_patterns(".*", "typing", "*.egg-info", "__pycache__", "*.so")


def runtime_libraries() -> str:
    """The address sanitizer must be loaded before Python's own allocations, and the C++ library
    with it: what it takes the place of in a library that comes later it does not find."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]

    def path(name: str) -> str:
        command = [compiler, f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return f"{path('libasan.so')}:{path('libstdc++.so.6')}"


def main(arguments: list[str]) -> int:
    tests = arguments or sorted(
        glob.glob("tests/**/test_native_*.py", root_dir=ROOT, recursive=True)
    )
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "dsconv"
        shutil.copytree(ROOT, copy, ignore=IGNORED)
        environment = {
            **os.environ,
            "DSCONV_NATIVE_FLAGS": SANITIZERS,
            "DSCONV_SHARED_DATA": str(ROOT.parent / "shared" / "data"),
            # Python frees nothing at its end, and its libraries less.
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": scratch,
        }
        setup = "from setuptools import setup; setup()"
        build = [sys.executable, "-c", setup, "--quiet", "build_ext", "--inplace"]
        subprocess.run(build, cwd=copy, env=environment, check=True)
        environment["LD_PRELOAD"] = runtime_libraries()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        return subprocess.run(command, cwd=copy, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
