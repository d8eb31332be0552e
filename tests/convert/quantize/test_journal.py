"""What a run keeps of its progress: accepted only by the same command, as far as it is whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsconv.convert.quantize import journal as journal_module
from dsconv.convert.quantize.journal import JOURNAL, Journal
from dsconv.errors import OutputError

PURPOSE: dict[str, Any] = {
    "versions": {"dsconv": "1.0"},
    "options": {"bits": 4, "method": "gptq", "damping": 0.01},
    "inputs": {"model.safetensors": [100, 5]},
    "calibration": "abc",
}


def changed(section: str, key: str, value: Any) -> dict[str, Any]:
    return {**PURPOSE, section: {**PURPOSE[section], key: value}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The folder of a run that was cut off after two records."""
    data = tmp_path / "model.safetensors"
    with Journal(tmp_path, PURPOSE) as journal:
        data.write_bytes(b"weights")
        journal.append({"modules": ["a"]}, [data])
        journal.append({"modules": ["b", "c"]}, [data])
    return tmp_path


def test_a_new_journal_is_not_resumed(tmp_path: Path) -> None:
    with Journal(tmp_path, PURPOSE) as journal:
        assert not journal.resumed
        assert journal.records == []
    with Journal(tmp_path, PURPOSE) as journal:
        assert not journal.resumed


def test_records_come_back_in_order(interrupted: Path) -> None:
    with Journal(interrupted, PURPOSE) as journal:
        assert journal.resumed
        assert journal.records == [{"modules": ["a"]}, {"modules": ["b", "c"]}]
        journal.append({"modules": ["d"]}, [])
    with Journal(interrupted, PURPOSE) as journal:
        assert [record["modules"] for record in journal.records] == [["a"], ["b", "c"], ["d"]]
    assert names(interrupted) == [JOURNAL, "model.safetensors"]


@pytest.mark.parametrize(
    ("purpose", "words"),
    [
        (changed("options", "bits", 8), "options bits 4 (now 8)"),
        (changed("options", "damping", 0.05), "options damping 0.01 (now 0.05)"),
        (changed("options", "extra", 1), "options extra None (now 1)"),
        (changed("versions", "dsconv", "2.0"), "versions dsconv 1.0 (now 2.0)"),
        (changed("inputs", "model.safetensors", [100, 6]), "inputs model.safetensors"),
        ({**PURPOSE, "calibration": "def"}, "calibration abc (now def)"),
        ({"calibration": "abc"}, "options"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_command_is_refused_by_name(
    purpose: dict[str, Any], words: str, interrupted: Path
) -> None:
    before = (interrupted / JOURNAL).read_bytes()
    with pytest.raises(OutputError) as caught, Journal(interrupted, purpose):
        pytest.fail("must not get here")
    assert words in caught.value.message
    assert "--overwrite" in caught.value.hint
    assert names(interrupted) == [JOURNAL, "model.safetensors"]
    assert (interrupted / JOURNAL).read_bytes() == before


def test_all_differences_are_named(interrupted: Path) -> None:
    purpose = changed("options", "bits", 8) | {"calibration": "def"}
    with pytest.raises(OutputError, match=r"calibration .*; options bits"):
        Journal(interrupted, purpose).__enter__()


def test_discarding_removes_what_belongs_to_another_command(interrupted: Path) -> None:
    (interrupted / "residual-3.bin").write_bytes(b"1")
    (interrupted / "folder").mkdir()
    (interrupted / "folder" / "file").write_bytes(b"1")
    with Journal(interrupted, changed("options", "bits", 8), discard=True) as journal:
        assert not journal.resumed
        assert names(interrupted) == [JOURNAL]
        journal.append({"modules": ["x"]}, [])
    with Journal(interrupted, changed("options", "bits", 8)) as journal:
        assert journal.records == [{"modules": ["x"]}]


def test_overwrite_goes_on_with_its_own_command(interrupted: Path) -> None:
    with Journal(interrupted, PURPOSE, discard=True) as journal:
        assert len(journal.records) == 2


def test_files_without_a_journal_are_removed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"unknown")
    with Journal(tmp_path, PURPOSE) as journal:
        assert not journal.resumed
        assert names(tmp_path) == [JOURNAL]


def test_a_line_that_was_cut_off_does_not_count(interrupted: Path) -> None:
    """At every byte of the last line, and of the very first."""
    path = interrupted / JOURNAL
    content = path.read_bytes()
    last = content[:-1].rindex(b"\n") + 1
    for length in range(last, len(content)):
        path.write_bytes(content[:length])
        with Journal(interrupted, PURPOSE) as journal:
            assert journal.records == [{"modules": ["a"]}]
            journal.append({"modules": ["new"]}, [])
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [line["modules"] for line in lines[1:]] == [["a"], ["new"]]
    for length in range(content.index(b"\n") + 1):
        path.write_bytes(content[:length])
        with Journal(interrupted, PURPOSE) as journal:
            assert not journal.resumed
            assert names(interrupted) == [JOURNAL]


@pytest.mark.parametrize(
    "line", [b"{not json", b"\xff\xfe", b"[1]", b"\0\0\0", b'{"crc32": 0, "modules": []}']
)
def test_a_damaged_journal_is_refused_or_discarded(line: bytes, interrupted: Path) -> None:
    path = interrupted / JOURNAL
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, lines[2], b""]))
    with pytest.raises(OutputError, match="damaged"):
        Journal(interrupted, PURPOSE).__enter__()
    with Journal(interrupted, PURPOSE, discard=True) as journal:
        assert not journal.resumed
        assert names(interrupted) == [JOURNAL]


def test_a_complete_run_leaves_its_outputs_and_nothing_else(interrupted: Path) -> None:
    for scratch in ("residual-7.bin", "activations-x1y2", "prepared.unfinished"):
        (interrupted / scratch).write_bytes(b"left by a crash")
    with Journal(interrupted, PURPOSE) as journal:
        journal.finish({"model.safetensors"})
    assert names(interrupted) == ["model.safetensors"]


def test_outputs_reach_the_disk_before_the_journal_goes(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in between costs nothing: all is there, and the journal says so."""

    def full(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Journal(interrupted, PURPOSE) as journal:
        monkeypatch.setattr(journal_module, "fsync_path", full)
        with pytest.raises(OSError, match="Input"):
            journal.finish({"model.safetensors"})
    assert names(interrupted) == [JOURNAL, "model.safetensors"]


def test_files_and_their_folder_reach_the_disk_before_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(journal_module, "fsync_path", lambda path: events.append(path.name))
    data = tmp_path / "data"
    with Journal(tmp_path, PURPOSE) as journal:
        size = (tmp_path / JOURNAL).stat().st_size
        flush = os.fsync

        def note(descriptor: int) -> None:
            events.append("line")
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        journal.append({"modules": []}, [data])
        assert (tmp_path / JOURNAL).stat().st_size > size
    assert events == ["data", tmp_path.name, "line"]


def test_lines_come_no_more_often_than_they_are_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def clock() -> float:
        return now

    def slow_flush(paths: Path) -> None:
        nonlocal now
        now += 3

    monkeypatch.setattr(journal_module.time, "monotonic", clock)
    monkeypatch.setattr(journal_module, "fsync_path", slow_flush)
    with Journal(tmp_path, PURPOSE) as journal:
        assert journal.due()
        journal.append({}, [])
        now += 29
        assert not journal.due()
        now += 1
        assert journal.due()


@pytest.fixture(autouse=True)
def _no_open_files() -> Iterator[None]:
    """Refused journals are closed too."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before
