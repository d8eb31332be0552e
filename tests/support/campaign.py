"""Thousands of inputs with something wrong in them, and what must hold for every one.

Run by hand:

    python tests/support/campaign.py KIND COUNT [SEED [FIRST]]

Input number N of a seed is always the same, so a finding is shown again by COUNT 1 and FIRST N.
A process of its own runs the inputs: one that dies or hangs is a finding with the input's number.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hostile.kinds import KINDS
from hostile.subjects import Subject

from dsconv.errors import DsconvError

MAX_SECONDS = 2.0  # of a processor for one input; the clock would blame it for a busy machine
MAX_GROWTH = 64 * 2**20  # bytes of resident memory beyond twice the largest input
KILL_AFTER = 60.0  # seconds by the clock: an input that waits for ever ends the process
MAX_FINDINGS = 20
SESSION_MEMORY = 2 << 30  # for ONNX Runtime, which allocates what a graph asks for
WARM_UP = 50  # inputs before memory is first measured
BLOCK = 50  # inputs between measurements: the tokenizers library keeps a kilobyte of every load


@dataclass
class Report:
    """What became of the inputs. `largest`: bytes; `growth`: the most by which the
    peak of resident memory rose within a block of inputs, bytes."""

    kind: str
    seed: int
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_input: int = -1
    largest: int = 0
    growth: int = 0
    findings: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        return self.inputs - self.refused

    def problems(self) -> list[str]:
        """Everything that must not be, in words."""
        found = list(self.findings)
        if self.slowest > MAX_SECONDS:
            found.append(f"input {self.slowest_input} took {self.slowest:.1f} s")
        if self.growth > 2 * self.largest + MAX_GROWTH:
            found.append(f"{self.growth >> 20} MiB more memory, inputs of {self.largest} bytes")
        return [f"{self.kind}, seed {self.seed}: {problem}" for problem in found]


def run_campaign(kind: str, count: int, seed: int = 1, first: int = 0) -> Report:
    """Run inputs first … first + count - 1 in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="dsconv-campaign-") as folder:
        warnings = ["-W", "error::RuntimeWarning"]  # numbers that overflow are not computed with
        command = [
            sys.executable,
            *warnings,
            __file__,
            "--child",
            kind,
            str(count),
            str(seed),
            str(first),
        ]
        done = subprocess.run([*command, folder], capture_output=True, encoding="utf-8")
        return read_report(kind, seed, done, Path(folder))


def read_report(
    kind: str, seed: int, done: subprocess.CompletedProcess[str], folder: Path
) -> Report:
    """What a process has found, or how it ended."""
    if done.returncode == 0:
        return Report(**json.loads(done.stdout.splitlines()[-1]))
    progress = folder / "progress"
    where = progress.read_text() if progress.exists() else "the preparation"
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
    hung = " (it hangs)" if done.returncode == -signal.SIGALRM else ""
    words = f"input {where}: the process ended with {how}{hung}: {done.stderr[-2000:]}"
    return Report(kind, seed, findings=[words])


def _run_here(kind: str, count: int, seed: int, first: int, folder: Path) -> Report:
    subject = KINDS[kind](folder)
    if kind in ("onnx-session", "fixed-session"):
        _limit_memory(SESSION_MEMORY)
    report = Report(kind, seed)
    progress = (folder / "progress").open("w")
    seen: set[str] = set()

    def run(number: int, into: Report) -> None:
        if number % 16 == 0 or number == first:
            progress.seek(0)
            progress.write(f"{number:012} to +15")
            progress.flush()
        _one(subject, into, random.Random(f"{kind} {seed} {number}"), number, seen)

    for number in range(first, first + min(count, WARM_UP)):
        run(number, Report(kind, seed))  # what is loaded once is not the inputs' memory
    seen.clear()
    before = _forget_peak()
    start = time.perf_counter()
    for number in range(first, first + count):
        run(number, report)
        if len(report.findings) >= MAX_FINDINGS:
            break
        if (number - first) % BLOCK == BLOCK - 1:
            report.growth = max(report.growth, _peak() - before)
            before = _forget_peak()
    report.seconds = time.perf_counter() - start
    report.growth = max(report.growth, _peak() - before)
    return report


def _forget_peak() -> int:
    """-> resident memory now, bytes; from here on the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text("ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _limit_memory(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _one(subject: Subject, report: Report, rng: random.Random, number: int, seen: set[str]) -> None:
    report.largest = max(report.largest, subject.prepare(rng))
    report.inputs += 1
    signal.setitimer(signal.ITIMER_REAL, KILL_AFTER)  # nobody handles it: the process ends
    start = _processor_seconds()
    try:
        subject.drive()
    except DsconvError as error:
        report.refused += 1
        _look_at_words(error, report, number, seen)
    except BaseException as error:  # a panic of Rust is no Exception
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/dsconv/" in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        key = f"{type(error).__name__} at {where}"
        if key not in seen:
            seen.add(key)
            report.findings.append(f"input {number}: {key}: {str(error)[:300]}")
        if isinstance(error, KeyboardInterrupt):
            raise
    seconds = _processor_seconds() - start
    signal.setitimer(signal.ITIMER_REAL, 0)
    if seconds > report.slowest:
        report.slowest, report.slowest_input = seconds, number


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _look_at_words(error: DsconvError, report: Report, number: int, seen: set[str]) -> None:
    """A message must be short enough to be read, and there must be a cure."""
    name = type(error).__name__
    report.reasons[name] = report.reasons.get(name, 0) + 1
    problem = ""
    if len(error.message) > 2000 or len(error.hint) > 2000:
        problem = f"a message of {len(error.message) + len(error.hint)} characters"
    elif not error.hint or not error.message:
        problem = "no message or no hint"
    elif error.exit_code in (1, 70):
        problem = f"exit code {error.exit_code}"
    key = f"{problem} {error.message.partition(':')[0][-60:]}"
    if problem and key not in seen:
        seen.add(key)
        report.findings.append(f"input {number}: {problem}: {error.message[:200]}")


def main() -> None:
    if sys.argv[1] == "--child":
        kind, count, seed, first, folder = sys.argv[2:]
        report = _run_here(kind, int(count), int(seed), int(first), Path(folder))
        print(json.dumps(asdict(report)))
        return
    kind, count, *rest = sys.argv[1:]
    seed, first = (int(rest[0]) if rest else 1), (int(rest[1]) if len(rest) > 1 else 0)
    report = run_campaign(kind, int(count), seed, first)
    print(
        f"{kind}: seed {seed}, {report.inputs} inputs from number {first} in {report.seconds:.1f} s"
        f" ({report.inputs / max(report.seconds, 1e-9):.0f}/s), {report.refused} refused "
        f"{report.reasons}, {report.accepted} accepted; slowest {report.slowest:.3f} s (number "
        f"{report.slowest_input}); largest {report.largest} bytes, "
        f"memory +{report.growth >> 20} MiB"
    )
    for problem in report.problems():
        print("  " + problem)
    sys.exit(bool(report.problems()))


if __name__ == "__main__":
    main()
