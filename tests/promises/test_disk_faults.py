"""Disks that are full, read-only or broken, and other processes at the same output.

Exit code 6, one error and one hint, and the same command ends with the same bytes when the cause is
gone.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import CASES, Case, assert_clean_failure, make_sources
from outputs import digest
from processes.forked import ForkServer, needs_strace
from processes.small_disk import needs_unshare

from dsconv.atomic import MANIFEST, lock_path, output_folder, partial_of
from dsconv.convert.quantize.journal import JOURNAL

NEW = [case for case in CASES if not case.overwrite]
QUICK = [case for case in NEW if case.name != "tuned"]
by_name = pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
in_short = pytest.mark.parametrize(  # the others with -m slow
    "case",
    [
        pytest.param(
            case,
            id=case.name,
            marks=() if case.name in ("rtn", "onnx", "native") else pytest.mark.slow,
        )
        for case in QUICK
    ],
)
ERRORS = {
    "fsync": "EIO",
    "rename": "EACCES",
    "mkdir": "EROFS",
    "ftruncate": "ENOSPC",
    "link": "ENOSPC",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_sources(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def wanted(
    server: ForkServer, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str | None]:
    """Case -> digest of what it writes undisturbed."""
    found = {}
    for case in QUICK:
        place = tmp_path_factory.mktemp("whole")
        done = server.run(*case.command(sources, place))
        assert done.code == 0, done.err
        found[case.name] = digest(place / case.output)
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- errors of the system


def fails_cleanly(
    server: ForkServer, case: Case, sources: dict[str, str], place: Path, wanted: str | None
) -> bool:
    """After a command has failed: what it left, and that the next one ends well."""
    output = place / case.output
    whole = output.exists()  # the flush of the parent folder, after the rename
    assert not whole or digest(output) == wanted
    left = {case.output} if whole else set()
    if case.arguments[0] == "quantize":
        assert names(place) - left <= {partial_of(output).name}
    else:
        assert names(place) == left
    if not whole:
        again = server.run(*case.command(sources, place))
        assert again.code == 0, again.err
    assert (digest(output), names(place)) == (wanted, {case.output})
    return True


@needs_strace
@in_short
def test_a_call_that_fails(
    server: ForkServer,
    case: Case,
    sources: dict[str, str],
    wanted: dict[str, str | None],
    tmp_path: Path,
) -> None:
    """The first, and then some of the later ones."""
    place = tmp_path / "place"
    for call, error in ERRORS.items():
        point = 1
        while True:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            fault = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={point}"]
            outcome = server.run(*case.command(sources, place), strace=fault)
            if outcome.code == 0:
                break
            assert_clean_failure(outcome, 6, str(place), "cannot write")
            fails_cleanly(server, case, sources, place, wanted[case.name])
            point += 7


@needs_strace
@in_short
def test_writes_that_fail_from_one_on(
    server: ForkServer,
    case: Case,
    sources: dict[str, str],
    wanted: dict[str, str | None],
    tmp_path: Path,
) -> None:
    """Each file in turn cannot be written beyond its first, or third, piece."""
    place, scratch = tmp_path / "place", partial_of(tmp_path / "place" / case.output)
    files = [scratch]
    if not Path(case.output).suffix:
        seen = ["model.safetensors", "model.gguf", "model.onnx", "config.json", MANIFEST, JOURNAL]
        files = [scratch / name for name in seen]
    failed = 0
    for path, first in ((path, first) for path in files for first in (1, 3)):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        fault = ["-P", str(path), "-e", "trace=write"]
        fault += ["-e", f"inject=write:error=ENOSPC:when={first}+"]
        outcome = server.run(*case.command(sources, place), strace=fault)
        if outcome.code == 0:
            continue
        failed += 1
        assert_clean_failure(outcome, 6, "No space left", "free some space")
        fails_cleanly(server, case, sources, place, wanted[case.name])
    assert failed


LINE = re.compile(r"^\d+ +(write|pwrite64|fsync|rename|renameat2|sendfile)\((.*)\) += \d+$")


@needs_strace
@by_name
def test_every_file_is_flushed_before_the_rename_and_the_folder_after(
    server: ForkServer, case: Case, sources: dict[str, str], tmp_path: Path
) -> None:
    """What can be promised against a loss of power: the order of the calls."""
    place = tmp_path / "place"
    place.mkdir()
    output, scratch = place / case.output, partial_of(place / case.output)
    calls = ["-y", "-e", "trace=write,pwrite64,fsync,rename,renameat2,sendfile"]
    running = server.start(*case.command(sources, place), strace=calls)
    assert running.wait().code == 0
    assert running.log is not None
    written: dict[str, int] = {}
    flushed: dict[str, int] = {}
    renamed = parent = 0
    for number, line in enumerate(running.log.read_text("utf-8", "replace").splitlines()):
        found = LINE.match(line)
        if found is None:
            continue
        call, arguments = found[1], found[2]
        path = arguments.partition("<")[2].partition(">")[0]
        if call in ("write", "pwrite64", "sendfile") and path.startswith(str(scratch)):
            written[path] = number
        elif call == "fsync" and path == str(place):
            parent = number
        elif call == "fsync":
            flushed[path] = number
        elif call.startswith("rename") and f'"{output}"' in arguments:
            renamed = number
    assert 0 < renamed < parent
    kept = written if scratch == output else {p: n for p, n in written.items() if JOURNAL not in p}
    for path, number in kept.items():
        if path == str(scratch) or (output / Path(path).relative_to(scratch)).exists():
            assert number < flushed[path] < renamed, path
    if output.is_dir():
        assert flushed[str(scratch)] < renamed


# ---------------------------------------------------------------- real disks


class SmallDisk:
    """A tmpfs that only one fork server has mounted, and what lies on it."""

    def __init__(self, scratch: Path) -> None:
        self._mounted = scratch / "disk"
        self._mounted.mkdir()
        mount = f'mount -t tmpfs -o size=1m none "{self._mounted}" && exec "$0" "$@"'
        self.server = ForkServer(scratch, prefix=["unshare", "-rm", "sh", "-c", mount])

    def __enter__(self) -> SmallDisk:
        self.server.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self.server.__exit__(None, None, None)

    @property
    def place(self) -> Path:
        """As the commands see it."""
        return self._mounted

    @property
    def seen(self) -> Path:
        """The same, as it is seen from here."""
        return Path(f"/proc/{self.server.pid}/root{self._mounted}")

    def mount(self, options: str) -> None:
        enter = ["nsenter", "-t", str(self.server.pid), "-U", "-m", "--preserve-credentials"]
        command = [*enter, "mount", "-o", f"remount,{options}", str(self._mounted)]
        subprocess.run(command, check=True, capture_output=True, timeout=20)

    def clear(self) -> None:
        self.mount("rw,size=8m")
        for path in self.seen.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path_factory.mktemp("mount")) as mounted:
        yield mounted


def fill(
    disk: SmallDisk, case: Case, sources: dict[str, str], wanted: str | None, sizes: range
) -> int:
    """Run with ever larger disks, each enlarged after the failure -> how many were too small."""
    command = [*case.command(sources, disk.place), *(["--copy"] if "export" in case.name else [])]
    for count, size in enumerate(sizes):
        disk.clear()
        disk.mount(f"size={size}k")
        outcome = disk.server.run(*command)
        if outcome.code == 0:
            assert digest(disk.seen / case.output) == wanted
            return count
        assert_clean_failure(outcome, 6, str(disk.place))
        assert "No space left" in outcome.err or "are free" in outcome.err
        assert not (disk.seen / case.output).exists()
        if case.arguments[0] == "export":
            assert names(disk.seen) == set()
        disk.mount("size=8m")
        again = disk.server.run(*command)
        assert again.code == 0, again.err
        assert (digest(disk.seen / case.output), names(disk.seen)) == (wanted, {case.output})
    raise AssertionError("the largest disk was too small")


@needs_unshare
@by_name
def test_a_disk_that_is_full_and_then_enlarged(
    disk: SmallDisk, case: Case, sources: dict[str, str], wanted: dict[str, str | None]
) -> None:
    assert fill(disk, case, sources, wanted[case.name], range(8, 1000, 96)) > 0


@needs_unshare
@pytest.mark.slow
@by_name
def test_a_full_disk_of_many_sizes(
    disk: SmallDisk, case: Case, sources: dict[str, str], wanted: dict[str, str | None]
) -> None:
    count = fill(disk, case, sources, wanted[case.name], range(4, 1000, 4))
    print(f"{case.name}: {count} sizes")


@needs_unshare
@by_name
def test_a_read_only_output_is_told_before_any_work(
    disk: SmallDisk, case: Case, sources: dict[str, str]
) -> None:
    disk.clear()
    disk.mount("ro")
    outcome = disk.server.run(*case.command(sources, disk.place))
    assert_clean_failure(outcome, 6, "Read-only file system")
    assert names(disk.seen) == set()


@needs_unshare
@by_name
def test_a_read_only_input_works(
    disk: SmallDisk,
    case: Case,
    sources: dict[str, str],
    wanted: dict[str, str | None],
    tmp_path: Path,
) -> None:
    """Links are not possible to another disk: the bytes are copied."""
    disk.clear()
    for name, path in sources.items():
        copy = shutil.copytree if Path(path).is_dir() else shutil.copyfile
        copy(path, disk.seen / name)
    disk.mount("ro")
    there = {name: str(disk.place / name) for name in sources}
    outcome = disk.server.run(*case.command(there, tmp_path))
    assert outcome.code == 0, outcome.err
    assert digest(tmp_path / case.output) == wanted[case.name]


@needs_unshare
@pytest.mark.parametrize("options", ["ro", "size=4k"])
def test_a_cache_that_cannot_be_written_is_a_warning(
    disk: SmallDisk, sources: dict[str, str], tmp_path: Path, options: str
) -> None:
    artifact = tmp_path / "x.dsq"
    assert (
        disk.server.run("export", sources["quantized"], "--format", "native", "-o", artifact).code
        == 0
    )
    disk.clear()
    disk.mount(options)
    short = ("--window", 32, "--max-tokens", 64, "--no-layers", "--max-kl", 1)
    cache = ("--reference-cache", disk.place / "cache")
    outcome = disk.server.run(
        "verify", artifact, "--reference", sources["model"], *short, *cache, "--json"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.json["passed"]
    assert "predictions are not kept" in outcome.err


# ---------------------------------------------------------------- several processes


@by_name
def test_a_second_run_is_refused_at_once(
    server: ForkServer, case: Case, sources: dict[str, str], tmp_path: Path
) -> None:
    scratch = partial_of(tmp_path / case.output)
    if Path(case.output).suffix:
        lock = lock_path(scratch, create=True)
    else:
        scratch.mkdir()
        lock = lock_path(scratch)
    try:
        start = time.monotonic()
        outcome = server.run(*case.command(sources, tmp_path))
        assert time.monotonic() - start < 2
    finally:
        os.close(lock)
    assert_clean_failure(outcome, 6, str(scratch), f"(process {os.getpid()})")
    assert server.run(*case.command(sources, tmp_path)).code == 0
    assert names(tmp_path) == {case.output}


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("second")) as running:
        yield running


def race(
    servers: tuple[ForkServer, ForkServer],
    case: Case,
    sources: dict[str, str],
    wanted: str | None,
    place: Path,
    pairs: int,
) -> int:
    """Two runs with a random distance -> how many of the second were refused."""
    chance = random.Random(3)
    refused = 0
    for _ in range(pairs):
        place.mkdir()
        command = case.command(sources, place)
        first = servers[0].start(*command)
        time.sleep(chance.uniform(0, 0.08))  # about as long as a run
        outcomes = [servers[1].run(*command), first.wait()]
        codes = sorted(outcome.code for outcome in outcomes)
        assert codes == [0, 6], [outcome.err for outcome in outcomes]
        loser = next(outcome for outcome in outcomes if outcome.code)
        assert_clean_failure(loser, 6)
        refused += "is writing there" in loser.err
        assert (digest(place / case.output), names(place)) == (wanted, {case.output})
        shutil.rmtree(place)
    return refused


@pytest.mark.parametrize("name", ["rtn", "native", "onnx"])
@pytest.mark.parametrize("pairs", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_two_runs_at_the_same_time(
    server: ForkServer,
    second: ForkServer,
    sources: dict[str, str],
    wanted: dict[str, str | None],
    tmp_path: Path,
    name: str,
    pairs: int,
) -> None:
    (case,) = (case for case in NEW if case.name == name)
    both = (server, second)
    refused = race(both, case, sources, wanted[name], tmp_path / "place", pairs)
    print(f"{name}: {refused} of {pairs} met the lock")


def test_a_lock_dies_with_its_process(
    server: ForkServer, sources: dict[str, str], tmp_path: Path
) -> None:
    for case in (case for case in NEW if case.name in ("rtn", "native")):
        command = case.command(sources, tmp_path)
        assert server.run(*command, below=tmp_path, crash_at=3).code == 137
        assert partial_of(tmp_path / case.output).exists()
        assert server.run(*command).code == 0


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path) -> None:
    """Never nothing, and never a mixture, while a folder is replaced again and again."""
    final = tmp_path / "out"
    done = threading.Event()
    wrong: list[str] = []
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            try:
                folder = os.open(final, os.O_RDONLY)
            except FileNotFoundError:
                wrong.append("nothing")
                continue
            try:
                found = {_read(folder, name) for name in ("a", "b", MANIFEST)} - {None}
                seen.update(text for text in found if text)
                if len(found) > 1:
                    wrong.append(f"a mixture: {found}")
            finally:
                os.close(folder)

    def write(generation: int) -> None:
        with output_folder(final, overwrite=True) as folder:
            for name in ("a", "b", MANIFEST):
                (folder / name).write_text(str(generation))

    write(0)
    reader = threading.Thread(target=read)
    reader.start()
    for generation in range(1, 40):
        write(generation)
    done.set()
    reader.join()
    assert wrong == []
    assert len(seen) > 3


def _read(folder: int, name: str) -> str | None:
    """None when the folder has been replaced and removed meanwhile."""
    try:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor) as file:
        return file.read()
