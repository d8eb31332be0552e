"""Outputs appear whole or not at all, and nothing of somebody else's is replaced."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsconv import atomic
from dsconv.atomic import link_or_copy, output_file, output_folder, refuse_existing
from dsconv.errors import InputError, OutputError

MANIFEST = "dsconv.json"


def finished(folder: Path) -> Path:
    """An output of an earlier run."""
    folder.mkdir()
    (folder / MANIFEST).write_text("{}")
    (folder / "old").write_text("old")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_nothing_under_the_final_name_before_the_end(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "out"
    with output_folder(final) as folder:
        (folder / "a").write_text("1")
        assert folder.name == "out.partial"
        assert not final.exists()
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/a"]


def write_and_fail(final: Path, error: BaseException, overwrite: bool = False) -> None:
    with output_folder(final, overwrite) as folder:
        (folder / "new").write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_and_fail(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_an_exception_keeps_what_was_to_be_replaced(tmp_path: Path) -> None:
    final = finished(tmp_path / "out")
    with pytest.raises(ValueError, match="stop"):
        write_and_fail(final, ValueError("stop"), overwrite=True)
    assert names(tmp_path) == ["out", "out/dsconv.json", "out/old"]


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    final = finished(tmp_path / "out")
    with output_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["out", "out/new"]


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_text("x")
    with output_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert names(tmp_path) == ["out", "out/whole"]


def stop_resumable(final: Path, error: BaseException) -> None:
    with output_folder(final, resume=True) as folder:
        (folder / "half").write_text("x")
        raise error


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), MemoryError(), OutputError("x", "y"), OSError(28, "full")],
    ids=lambda error: type(error).__name__,
)
def test_an_interruption_leaves_what_can_be_resumed(tmp_path: Path, error: BaseException) -> None:
    wanted = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        stop_resumable(tmp_path / "out", error)
    assert names(tmp_path) == ["out.partial", "out.partial/half"]
    with output_folder(tmp_path / "out", resume=True) as folder:
        assert (folder / "half").read_text() == "x"
    assert names(tmp_path) == ["out", "out/half"]


@pytest.mark.parametrize("error", [ValueError("x"), InputError("x", "y")])
def test_an_error_that_would_come_again_leaves_nothing(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        stop_resumable(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_what_can_be_resumed_is_no_obstacle_to_other_work(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop_resumable(tmp_path / "out", KeyboardInterrupt())
    (tmp_path / "out.partial" / "sub").mkdir()
    with output_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_one_process_at_a_time(tmp_path: Path, resume: bool) -> None:
    """Until the very end: the other would empty the folder, or rename it half-done."""
    final = tmp_path / "out"
    with output_folder(final, resume=True) as folder:
        (folder / "a").write_text("1")
        with (
            pytest.raises(OutputError, match=r"another dsconv.* is writing there"),
            output_folder(final, resume=resume),
        ):
            pytest.fail("must not get here")
        assert (folder / "a").read_text() == "1"
    assert names(tmp_path) == ["out", "out/a"]


def test_a_folder_that_has_just_been_finished_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process renames between our opening of the folder and our lock."""
    partial, final = tmp_path / "out.partial", tmp_path / "out"
    lock = atomic.fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        partial.rename(final)
        lock(descriptor, operation)

    partial.mkdir()
    (partial / "a").write_text("1")
    monkeypatch.setattr(atomic.fcntl, "flock", late)
    with pytest.raises(OutputError, match="another dsconv"), output_folder(final):
        pytest.fail("must not get here")
    assert names(tmp_path) == ["out", "out/a"]


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    with output_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == ["out", "out/a"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == ["out", "out/a"]


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_link_to_an_empty_folder_is_that_folder(tmp_path: Path, is_relative: bool) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk/real" if is_relative else tmp_path / "disk" / "real")
    for text in ("1", "2"):
        with output_folder(tmp_path / "out", overwrite=text == "2") as folder:
            (folder / "a").write_text(text)
            (folder / MANIFEST).write_text("{}")
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "real" / "a").read_text() == text
    assert names(tmp_path) == ["disk", "disk/real", "disk/real/a", f"disk/real/{MANIFEST}", "out"]
    with pytest.raises(OutputError, match="already exists"):
        refuse_existing(tmp_path / "out", overwrite=False)


def test_a_mount_point_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(OutputError, match="a mount point"):
        refuse_existing(tmp_path / "disk", overwrite=False)


def test_a_single_file_never_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "out.dsq").symlink_to("thesis.txt")
    with (
        pytest.raises(OutputError, match=r"a link to .*thesis\.txt"),
        output_file(tmp_path / "out.dsq", overwrite=True),
    ):
        pytest.fail("must not get here")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_relative_name_means_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with output_folder(Path("out")) as folder:
        os.chdir("elsewhere")
        (folder / "a").write_text("1")
    assert (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "link to nothing", "full folder", "full folder's link"])
def test_what_dsconv_did_not_write_is_never_replaced(
    tmp_path: Path, kind: str, overwrite: bool
) -> None:
    final = tmp_path / "out"
    if kind == "file":
        final.write_text("precious")
    elif kind == "link to nothing":
        final.symlink_to(tmp_path / "nowhere")
    else:
        precious = final if kind == "full folder" else tmp_path / "target"
        precious.mkdir()
        (precious / "thesis.txt").write_text("precious")
        if final != precious:
            final.symlink_to(precious)
    before = names(tmp_path)
    with pytest.raises(OutputError, match="already exists"):
        refuse_existing(final, overwrite)
    with pytest.raises(OutputError, match="already exists"), output_folder(final, overwrite):
        pytest.fail("must not get here")
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may write"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "another folder"),
    ],
)
def test_errors_of_the_disk_are_translated(tmp_path: Path, number: int, word: str) -> None:
    with pytest.raises(OutputError) as caught, output_folder(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "out") in caught.value.message
    assert os.strerror(number) in caught.value.message
    assert word in caught.value.hint
    assert names(tmp_path) == []


def test_a_failing_flush_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError), output_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == []


def test_a_failing_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = finished(tmp_path / "out")
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == "out.partial":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    with pytest.raises(OutputError), output_folder(final, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["out", "out/dsconv.json", "out/old"]


def test_files_are_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    rename, flush = os.rename, atomic.fsync_path

    def note_rename(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    def note_flush(path: Path) -> None:
        events.append(path.relative_to(tmp_path).as_posix())
        flush(path)

    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(atomic, "fsync_path", note_flush)
    with output_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("1")
        (folder / "a").write_text("1")
    middle = events.index("rename")
    expected = {"out.partial", "out.partial/a", "out.partial/sub", "out.partial/sub/b"}
    assert set(events[:middle]) == expected
    assert events[middle:] == ["rename", "."]


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from dsconv.atomic import output_folder\n"
        "with output_folder(Path(sys.argv[1])) as f:\n"
        "    (f / 'a').write_text('1'); print('ready', flush=True); time.sleep(60)\n"
    )
    final = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(final)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)
    assert not final.exists()
    with output_folder(final) as folder:
        (folder / "b").write_text("2")
    assert names(tmp_path) == ["out", "out/b"]


def test_a_link_costs_nothing_and_a_copy_is_a_file_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"12345")
    assert link_or_copy(source, tmp_path / "link") == 0
    assert (tmp_path / "link").stat().st_ino == source.stat().st_ino
    assert link_or_copy(source, tmp_path / "copy", copy=True) == 5
    assert (tmp_path / "copy").stat().st_ino != source.stat().st_ino
    assert (tmp_path / "copy").read_bytes() == b"12345"


def test_a_link_goes_to_the_file_behind_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"1")
    (tmp_path / "name").symlink_to("blob")
    assert link_or_copy(tmp_path / "name", tmp_path / "out") == 0
    assert not (tmp_path / "out").is_symlink()


def test_where_links_are_impossible_the_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_bytes(b"123")
    assert link_or_copy(tmp_path / "source", tmp_path / "out") == 3
    assert (tmp_path / "out").read_bytes() == b"123"
