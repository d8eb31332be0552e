"""The matrix kernels under sanitizers, and on an emulated ARM processor: linear_check.cpp."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.slow

NATIVE = ROOT / "runtime" / "native"
SOURCES = sorted(path for path in (NATIVE / "linear").rglob("*.cpp") if path.name != "binding.cpp")
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-w"]


def build(compiler: str, folder: Path, *flags: str) -> Path:
    program = folder / "linear_check"
    sources = [str(path) for path in (Path(__file__).with_name("linear_check.cpp"), *SOURCES)]
    command = [compiler, *FLAGS, *flags, "-iquote", str(NATIVE), *sources, "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    sanitizers = "-fsanitize=address,undefined"
    program = build(compiler, tmp_path, sanitizers, "-fno-sanitize-recover=all", "-g1")
    assert "0 differences" in run(str(program))


def test_arm_kernels_agree_in_emulation(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if platform.machine() == "aarch64" or compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64 on another processor")
    program = build(compiler, tmp_path, "-static")
    output = run(emulator, "-cpu", "max", str(program))
    assert "kernels: neon_dotprod" in output
    assert "0 differences" in output
