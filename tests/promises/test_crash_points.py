"""kill -9 at every step that changes the disk: the same command then ends with the same bytes.

A step is a system call (strace, which catches every single write) or what Python does to a file (a
hook of Python's own, which works anywhere). The default run takes some of the steps, `-m slow` all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from build_recipe import RECIPE
from commands import CASES, Case, make_sources
from outputs import digest
from processes.forked import ForkServer, needs_strace

HOOK_STRIDE = 4  # the default run of the portable hook takes every fourth step
CALLS = ("mkdir", "write", "pwrite64", "fsync", "rename", "renameat2", "unlink", "rmdir")
CALLS += ("ftruncate", "link", "sendfile")
QUICK = [case for case in CASES if case.name != "tuned"]  # whose every run takes a second
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_sources(tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("server")) as running:
        yield running


class Trial:
    """One command, disturbed again and again."""

    def __init__(self, server: ForkServer, case: Case, sources: dict[str, str], place: Path):
        self.server, self.place, self.overwrite = server, place, case.overwrite
        self.output = place / case.output
        self.command = case.command(sources, place)
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


# ---------------------------------------------------------------- without exchanging names


def test_killed_while_replacing_in_two_steps(
    server: ForkServer, sources: dict[str, str], tmp_path: Path
) -> None:
    """Between two renames nothing bears the name; the next run restores it."""
    (case,) = (case for case in CASES if case.name == "onnx-over")
    trial = Trial(server, case, sources, tmp_path / "place")
    two_renames = {"DSCONV_TEST_TWO_RENAMES": "1"}
    point = 1
    while not trial.survives(
        old_may_be_gone=True, below=trial.place, crash_at=point, environment=two_renames
    ):
        point += 1


# ---------------------------------------------------------------- dsconv build


def artifact(output: Path) -> str | None:
    """What does not hold the time of its verification."""
    found = [path for path in output.glob("model*") if path.name != "model.work"]
    return digest(found[0]) if found else None


def kill_builds(server: ForkServer, sources: dict[str, str], place: Path, stride: int) -> int:
    recipe = place.with_name("small.toml")
    recipe.write_text(RECIPE.format(source=sources["model"], format="onnx"), encoding="utf-8")
    output = place / "out"
    command = ["build", recipe, "-o", output, "--threads", "1"]
    place.mkdir()
    undisturbed = server.run(*command)
    assert undisturbed.code == 0, undisturbed.err
    wanted, names = artifact(output), sorted(path.name for path in output.iterdir())
    points = 0
    while True:
        shutil.rmtree(place)
        place.mkdir()
        outcome = server.run(*command, below=place, crash_at=1 + points * stride)
        if outcome.code == 0:
            return points
        assert outcome.code == 137, outcome.err
        points += 1
        assert artifact(output) in (None, wanted)
        again = server.run(*command)
        assert again.code == 0, again.err
        assert (artifact(output), sorted(path.name for path in output.iterdir())) == (wanted, names)
        assert sorted(path.name for path in place.iterdir()) == ["out", "out.work"]


def test_a_build_killed_at_some_steps(
    server: ForkServer, sources: dict[str, str], tmp_path: Path
) -> None:
    assert kill_builds(server, sources, tmp_path / "place", stride=24) > 2


@pytest.mark.slow
def test_a_build_killed_at_every_step(
    server: ForkServer, sources: dict[str, str], tmp_path: Path
) -> None:
    print(f"build: {kill_builds(server, sources, tmp_path / 'place', stride=1)} steps")
