"""Ctrl-C and a polite kill: the end within two seconds, and the same command goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import make_sources
from outputs import digest
from places import smollm2_path

LIMIT = 2.0  # seconds from the signal to the end of the process
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

# A computation that looks at no signal: half a minute outside of Python.
BUSY = """
import hashlib, sys
from concurrent.futures import ThreadPoolExecutor
from dsconv import cli
from dsconv.convert.quantize import run

def compute(*arguments):
    return hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)

def in_main(*arguments):
    print("busy", flush=True)
    compute()

def in_threads(*arguments):
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(compute) for _ in range(2)]
        print("busy", flush=True)
        futures[0].result()

assert callable(run.round_freely)
run.round_freely = {where}
sys.argv = ["dsconv", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_sources(tmp_path_factory.mktemp("interrupted"))


def interrupt(child: subprocess.Popen[str], number: signal.Signals) -> tuple[float, str]:
    """-> seconds until the end, what was said."""
    child.send_signal(number)
    start = time.monotonic()
    said = child.communicate(timeout=60)[1]
    return time.monotonic() - start, said


@pytest.mark.parametrize("where", ["in_main", "in_threads"])
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_while_a_kernel_computes(
    sources: dict[str, str], tmp_path: Path, where: str, number: signal.Signals
) -> None:
    output = tmp_path / "out"
    command = ["quantize", sources["model"], "--method", "rtn", "-o", str(output)]
    with subprocess.Popen(
        [sys.executable, "-c", BUSY.replace("{where}", where), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "busy\n"
        time.sleep(0.3)  # now it surely is
        seconds, said = interrupt(child, number)
    assert child.returncode == CODES[number]
    assert seconds < LIMIT
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]


def dsconv_process(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dsconv", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_at_ten_random_times(tmp_path: Path, number: signal.Signals) -> None:
    """A real model, calibrated: in kernels, in threads, while files are written."""
    model, text = smollm2_path(), tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    chosen = ("--method", "gptq", "--calibration", text, "--calibration-tokens", 1024)
    whole, output = tmp_path / "whole", tmp_path / "out"
    start = time.monotonic()
    with dsconv_process("quantize", model, *chosen, "-o", whole) as child:
        assert child.wait(timeout=1200) == 0
    length = time.monotonic() - start
    chance = random.Random(number)
    slowest = 0.0
    for _ in range(10):
        with dsconv_process("quantize", model, *chosen, "-o", output) as child:
            try:
                child.wait(chance.uniform(3, 0.4 * length))
                break  # done before its signal came
            except subprocess.TimeoutExpired:
                seconds, said = interrupt(child, number)
        assert (child.returncode, "Traceback" in said) == (CODES[number], False), said
        slowest = max(slowest, seconds)
        assert not output.exists()
    if not output.exists():
        with dsconv_process("quantize", model, *chosen, "-o", output) as child:
            assert child.wait(timeout=1200) == 0
    print(f"{number.name}: slowest end {slowest:.2f} s, {os.path.basename(model)}")
    assert slowest < LIMIT
    assert digest(output) == digest(whole)
