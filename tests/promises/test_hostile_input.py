"""Every kind of file from a stranger, mutated: clean errors only, no hang, bounded memory.

support/hostile says what is read and how; a finding is shown again with tests/support/campaign.py.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import campaign
import pytest
from campaign import Report, run_campaign
from hostile.kinds import KINDS
from places import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by /proc")
SEED = 20261125
# Inputs in the fast tests and in the slow ones.
COUNTS = {
    "safetensors": (2500, 200_000),
    "index": (2000, 100_000),
    "config": (2000, 100_000),
    "quantization": (1500, 100_000),
    "ascend": (1000, 100_000),
    "tokenizer": (2000, 100_000),
    "tokenizer-config": (2000, 100_000),
    "generation-config": (2000, 100_000),
    "template": (150, 5_000),
    "manifest": (1500, 100_000),
    "journal": (2000, 100_000),
    "genai-config": (2000, 100_000),
    "recipe": (2000, 100_000),
    "gguf": (2500, 200_000),
    "gguf-types": (1000, 100_000),
    "gguf-parts": (1000, 100_000),
    "native": (1500, 100_000),
    "onnx": (120, 20_000),
    "onnx-session": (200, 5_000),
    "fixed-session": (60, 5_000),
    "foreign-gptq": (300, 20_000),
    "foreign-awq": (300, 20_000),
    "foreign-bitsandbytes": (300, 20_000),
    "foreign-fp8": (300, 20_000),
    "foreign-mlx": (300, 20_000),
    "foreign-compressed": (300, 20_000),
}


def check(report: Report, count: int) -> None:
    print(report)  # shown where the test fails: the seed is in it
    assert report.problems() == []
    assert report.inputs == count
    assert report.refused > 0.1 * count
    assert report.accepted > 0  # mutations that are all noticed at once reach nothing


def test_every_kind_has_its_counts() -> None:
    assert sorted(COUNTS) == sorted(KINDS)


@pytest.mark.parametrize("kind", COUNTS)
def test_mutated(kind: str) -> None:
    count = COUNTS[kind][0]
    check(run_campaign(kind, count, SEED), count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_by_the_hundred_thousand(kind: str) -> None:
    count = COUNTS[kind][1]
    check(run_campaign(kind, count, SEED + 1), count)


# ---------------------------------------------------------------- does the campaign see anything?


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("bug", "KeyError"),
        ("death", "the process ended with code 9"),
        ("slow", r"took 0\.\d s"),
        ("wait", r"signal 14 \(it hangs\)"),
        ("memory", "MiB more memory"),
    ],
)
def test_a_planted_fault_is_found(
    fault: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import campaign, hostile.planted\n"
        f"campaign.KINDS = {{'planted': lambda folder: hostile.planted.Planted({fault!r})}}\n"
        "campaign.KILL_AFTER = 5\n"
        "campaign.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--child", "planted", "400", "1", "0", str(tmp_path)],
        cwd=ROOT / "tests" / "support",
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    report = campaign.read_report("planted", 1, done, tmp_path)
    monkeypatch.setattr(campaign, "MAX_SECONDS", 0.3)
    assert re.search(words, "; ".join(report.problems()))


def test_the_same_number_is_the_same_input(tmp_path: Path) -> None:
    sizes = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        subject = KINDS["index"](tmp_path / folder)
        sizes.append([subject.prepare(random.Random(f"index 1 {n}")) for n in range(50)])
    assert sizes[0] == sizes[1]
