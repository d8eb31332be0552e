"""Environments with a provider's own wheel of ONNX Runtime, and dsconv run in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Outcome
from places import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from provider_environment import WHEELS, is_complete, python_of, with_dsconv

# Looked up before conftest.py puts an empty cache in place of the user's.
ENVIRONMENTS = {name: python_of(name) for name in WHEELS if is_complete(name)}


def environment(name: str) -> Path:
    """Its python; skips where there is none."""
    if name not in ENVIRONMENTS:
        pytest.skip(f"no environment: python scripts/provider_environment.py {name}")
    return ENVIRONMENTS[name]


def python_in(name: str, *arguments: object, timeout: float = 600) -> Outcome:
    """Run the environment's python, which imports dsconv from this checkout."""
    done = subprocess.run(
        [environment(name), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        env={**with_dsconv(), "PYTHONWARNINGS": "ignore"},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def dsconv_in(name: str, *arguments: object, timeout: float = 600) -> Outcome:
    return python_in(name, "-m", "dsconv", *arguments, timeout=timeout)
