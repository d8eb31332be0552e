"""kill -9 at every step that changes the disk: the same command then ends with the same bytes.

A step is a system call (strace, which catches every single write) or what Python does to a file (a
hook of Python's own, which works anywhere). The default run takes some of the steps, `-m slow` all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked import ForkServer, needs_strace
from helpers import folder_hash
from test_gguf_export import checkpoint as gguf_checkpoint

from dsconv.convert.checkpoint import open_checkpoint
from dsconv.convert.provenance import sha256_file
from dsconv.convert.quantization_plan import QuantizeOptions
from dsconv.convert.quantized import quantize_checkpoint

CALLS = ("mkdir", "write", "pwrite64", "fsync", "rename", "renameat2", "unlink", "rmdir")
CALLS += ("ftruncate", "link", "sendfile")
CALIBRATED = ("--method", "gptq", "--calibration", "text", "--calibration-tokens")
# Where no strace is needed the default run takes every HOOK_STRIDE-th step; with it, as given here.
HOOK_STRIDE = 4


@dataclass(frozen=True)
class Case:
    """A command line, in which `model`, `quantized` and `text` stand for paths.

    stride: the default run takes every so many-th system call of a kind.
    """

    name: str
    arguments: tuple[str, ...]
    output: str = "out"
    overwrite: bool = False
    stride: int = 8


CASES = [
    Case("rtn", ("quantize", "model", "--method", "rtn"), stride=12),
    Case("calibrated", ("quantize", "model", *CALIBRATED, "64"), stride=17),
    Case("tuned", ("quantize", "model", *CALIBRATED, "1024", "--tuning-epochs", "1"), stride=60),
    Case("onnx", ("export", "quantized", "--format", "onnx"), stride=4),
    Case("onnx-copied", ("export", "model", "--format", "onnx", "--copy"), stride=6),
    Case("native", ("export", "quantized", "--format", "native"), "out.dsq", stride=5),
    Case("gguf", ("export", "quantized", "--format", "gguf"), "out.gguf", stride=25),
    Case("gguf-folder", ("export", "quantized", "--format", "gguf"), stride=25),
    Case("compressed-tensors", ("export", "quantized", "--format", "compressed-tensors"), stride=6),
    Case("rtn-over", ("quantize", "model", "--method", "rtn"), overwrite=True, stride=16),
    Case("onnx-over", ("export", "quantized", "--format", "onnx"), overwrite=True, stride=5),
    Case("native-over", ("export", "quantized", "--format", "native"), "out.dsq", True, stride=6),
]
QUICK = [case for case in CASES if case.name != "tuned"]  # whose every run takes a second
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("crash")
    model = gguf_checkpoint(folder / "model")
    options = QuantizeOptions(method="rtn", head_bits=8)
    quantize_checkpoint(open_checkpoint(str(model)), options, folder / "quantized")
    (folder / "text").write_text("The quick brown fox jumps over the lazy dog. " * 30)
    return {name: str(folder / name) for name in ("model", "quantized", "text")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def digest(path: Path) -> str | None:
    """Of a file, or of names and bytes of a folder; None for nothing."""
    if path.is_dir():
        return folder_hash(path)
    return sha256_file(path) if path.exists() else None


class Trial:
    """One command, disturbed again and again."""

    def __init__(self, server: ForkServer, case: Case, sources: dict[str, str], place: Path):
        self.server, self.place, self.overwrite = server, place, case.overwrite
        self.output = place / case.output
        arguments = [sources.get(argument, argument) for argument in case.arguments]
        self.command = [*arguments, "-o", str(self.output)]
        self.points = self.whole = 0
        place.mkdir()
        undisturbed = server.run(*self.command)
        assert undisturbed.code == 0, undisturbed.err
        self.wanted = digest(self.output)
        self.old = place.with_name(f"old-{case.output}")
        if self.overwrite:
            self.command.append("--overwrite")
            self._make_old()

    def _make_old(self) -> None:
        """An output of the same kind with other bytes."""
        shutil.rmtree(self.place)
        if self.output.suffix:
            self.old.write_bytes(b"old")
        else:
            self.old.mkdir()
            (self.old / "dsconv.json").write_text("{}")
            (self.old / "sub").mkdir()
            (self.old / "sub" / "weights").write_bytes(b"old" * 1000)

    def _begin(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        if self.overwrite:
            copy = shutil.copytree if self.old.is_dir() else shutil.copyfile
            copy(self.old, self.output)

    def survives(self, old_may_be_gone: bool = False, **kill: Any) -> bool:
        """Run with a kill; True if it came to its end. Then run again and compare."""
        self._begin()
        outcome = self.server.run(*self.command, **kill)
        if outcome.code == 0:
            assert self._is_whole()
            return True
        assert outcome.code in (137, -9), outcome.err
        self.points += 1
        found = digest(self.output)
        if found == self.wanted and not self.overwrite:
            self.whole += 1  # killed after the last rename
            assert self._is_whole()
            return False
        allowed = {self.wanted, digest(self.old)} if self.overwrite else {None}
        assert found in allowed or (old_may_be_gone and found is None), kill
        again = self.server.run(*self.command)
        assert again.code == 0, (kill, again.err)
        assert self._is_whole(), (kill, sorted(self.place.rglob("*")))
        return False

    def _is_whole(self) -> bool:
        return digest(self.output) == self.wanted and list(self.place.iterdir()) == [self.output]


def kill_by_system_call(trial: Trial, stride: int) -> dict[str, int]:
    """-> how many points of every call; the first is always one of them."""
    counts = {}
    for call in CALLS:
        point = 1
        options = ["-e", f"trace={call}", "-e"]
        while not trial.survives(strace=[*options, f"inject={call}:signal=SIGKILL:when={point}"]):
            counts[call] = counts.get(call, 0) + 1
            point += stride
    return counts


@needs_strace
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_killed_at_some_system_calls(
    server: ForkServer, case: Case, sources: dict[str, str], tmp_path: Path
) -> None:
    trial = Trial(server, case, sources, tmp_path / "place")
    counts = kill_by_system_call(trial, case.stride)
    assert {"write", "fsync", "rename"} <= counts.keys() or trial.overwrite
    print(f"{case.name}: {counts}")


@needs_strace
@pytest.mark.slow
@by_name
def test_killed_at_every_system_call(
    server: ForkServer, case: Case, sources: dict[str, str], tmp_path: Path
) -> None:
    trial = Trial(server, case, sources, tmp_path / "place")
    counts = kill_by_system_call(trial, 1)
    print(f"{case.name}: {trial.points} points {counts}, {trial.whole} after the last rename")
    assert trial.points >= 12


def kill_by_hook(trial: Trial, stride: int, **how: Any) -> None:
    point = 1  # how many there are is not fixed: a calibrated run keeps what it has by the clock
    while not trial.survives(below=trial.place, crash_at=point, **how):
        point += stride
    assert trial.points >= 5 // stride


@by_name
def test_killed_by_the_portable_hook(
    server: ForkServer, case: Case, sources: dict[str, str], tmp_path: Path
) -> None:
    trial = Trial(server, case, sources, tmp_path / "place")
    kill_by_hook(trial, HOOK_STRIDE * (3 if case.name == "tuned" else 1))
    print(f"{case.name}: {trial.points} steps")


@pytest.mark.slow
@by_name
def test_killed_by_the_portable_hook_at_every_step(
    server: ForkServer, case: Case, sources: dict[str, str], tmp_path: Path
) -> None:
    trial = Trial(server, case, sources, tmp_path / "place")
    kill_by_hook(trial, 1)
    print(f"{case.name}: {trial.points} steps")
