"""Names from files stay in their folder, and what is no regular file never blocks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_models import write_checkpoint, write_json

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.files.local_files import open_regular, read_limited, safe_join
from dsconv.convert.files.safetensors import read_tensor_infos
from dsconv.convert.open import open_checkpoint
from dsconv.errors import DsconvError, InputError

LEADING_OUT = (
    *("../secret", "..", ".", "/etc/passwd", "a/../../secret", "a/..", "./a", "a//b", "a/", "/"),
    *("..\\secret", "a\\b", "C:\\a", "C:a", "\\\\host\\a", "~\\a", "a\0b", "a\nb", "\x7f", ""),
    *("a:b", "a*", "a?", "<a", "a|b", '"a"', "\ud800", "x" * 256, "é" * 128),
)
NOT_NAMES = (None, 3, True, [], {}, ["a"], b"a", 1.5)


@pytest.mark.parametrize("name", [*LEADING_OUT, *NOT_NAMES, "a/b"], ids=repr)
def test_a_name_that_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(InputError, match="index: file name"):
        safe_join(tmp_path, name, "index")


@pytest.mark.parametrize("name", [*LEADING_OUT, *NOT_NAMES, "a/b" * 200], ids=repr)
def test_a_name_with_folders_that_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(InputError, match="index: file name"):
        safe_join(tmp_path, name, "index", folders=True)


@pytest.mark.parametrize("name", ["a", "a.b-c_d 1", "…", ".hidden", "..a", "x" * 255, "~", "ü"])
def test_a_name_that_stays(tmp_path: Path, name: str) -> None:
    assert safe_join(tmp_path, name, "x") == tmp_path / name
    inside = safe_join(tmp_path, f"folder/{name}", "x", folders=True)
    assert inside == tmp_path / "folder" / name


# ---------------------------------------------------------------- regular files


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(os.path.relpath(path))


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nothing")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


STRANGE: tuple[Callable[[Path], None], ...] = (fifo, device, listening, folder, dangling, circle)


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """A read that waits for ever ends the whole process, with a trace of where it stood."""
    import faulthandler

    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strange: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    strange(path)
    with no_longer_than(20):
        for read in (read_json_object, read_tensor_infos, lambda p: read_limited(p, 10)):
            with pytest.raises(InputError, match="file"):
                read(path)


PLACES = (
    *("config.json", "model.safetensors.index.json", "model-00002-of-000003.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"),
)


@pytest.mark.parametrize("strange", [fifo, device, dangling, circle, listening])
@pytest.mark.parametrize("name", PLACES)
def test_in_place_of_any_file_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, strange: Callable[[Path], None]
) -> None:
    model = write_checkpoint(tmp_path / "m", shards=3)
    monkeypatch.chdir(model)
    (model / name).unlink(missing_ok=True)
    strange(model / name)
    with no_longer_than(20), pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    assert name in caught.value.message


def test_a_pipe_with_a_writer_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"{}")
    with no_longer_than(20), pytest.raises(InputError, match="is a pipe"):
        read_json_object(path)
    os.close(writer)


def test_sizes_at_the_limit_and_above(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_limited(path, 10) == b"x" * 10
    with pytest.raises(InputError, match="10 bytes, limit 9"):
        read_limited(path, 9)


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "gone"):
        with pytest.raises((DsconvError, OSError)):
            open_regular(path)
    assert sorted(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize(
    "name", [*(n + ".safetensors" for n in LEADING_OUT if n), "a/b.safetensors"], ids=repr
)
def test_a_shard_that_leads_out(tmp_path: Path, name: str) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    (tmp_path / "secret.safetensors").write_bytes(
        (model / "model-00001-of-000002.safetensors").read_bytes()
    )
    write_json(model / "model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(InputError, match=r"index\.json: (file name|not valid JSON)|missing, but"):
        open_checkpoint(str(model))


def test_shards_at_the_limit_and_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_checkpoint(tmp_path / "m", shards=3)
    monkeypatch.setattr(limits, "SHARDS", 3)
    open_checkpoint(str(model))
    monkeypatch.setattr(limits, "SHARDS", 2)
    with pytest.raises(InputError, match="3 shards, limit 2"):
        open_checkpoint(str(model))


def test_the_layout_of_the_hubs_cache_works(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=2)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / ("c" * 40), tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        blob = blobs / f"{number:064x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    checkpoint = open_checkpoint(str(snapshot))
    for name in checkpoint.parameters:
        checkpoint.rows(name)
    assert "tokenizer.json" in checkpoint.side_files
