"""What is kept of a reference: found again, and never trusted when it is not what it says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import write_checkpoint

from dsconv.convert.files.cache_folder import default_folder
from dsconv.convert.files.hashes import LARGE, FileHashes, artifact_files, combined
from dsconv.errors import UsageError
from dsconv.runtime.sessions.load import load
from dsconv.runtime.verify.reference import KeptPredictions, open_reference, score_in_pieces
from dsconv.runtime.verify.reference_cache import ReferenceCache, cache_key, chosen_folder

WINDOWS = [[256, *range(40)], [256, *range(90, 60, -1)], [256, 5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cache") / "m")


def key_of(path: Path, windows: list[list[int]] = WINDOWS, precision: str = "float32") -> str:
    reference = open_reference(str(path), precision)
    hashes = {file.name: FileHashes().sha256(file) for file in reference.files}
    return cache_key(reference, hashes, windows)


@pytest.fixture(scope="module")
def kept(model: Path) -> KeptPredictions:
    artifact = load(str(model))
    live = open_reference(str(model)).predict(WINDOWS, lambda done: None)
    for index, window in enumerate(WINDOWS):
        live.compare(index, score_in_pieces(artifact.session, window))
    return live.kept()


def test_an_entry_comes_back_as_it_was(tmp_path: Path, kept: KeptPredictions) -> None:
    cache = ReferenceCache(tmp_path)
    cache.store("k", kept)
    found = cache.load("k", WINDOWS)
    assert found is not None
    assert found.noise == kept.noise
    for mine, theirs in zip(found.windows, kept.windows, strict=True):
        assert mine.top == theirs.top
        for name in ("ids", "logits", "normalizer", "tail", "loss"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert [path.name for path in (tmp_path / "reference").iterdir()] == ["k.predictions"]


def test_no_entry_is_none(tmp_path: Path) -> None:
    assert ReferenceCache(tmp_path / "absent").load("k", WINDOWS) is None


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: flip(data, 0),
        lambda data: flip(data, 70),
        lambda data: flip(data, len(data) // 2),
        lambda data: flip(data, len(data) - 1),
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data + b"x",
    ],
)
def test_a_damaged_entry_is_none(tmp_path: Path, kept: KeptPredictions, damage: Any) -> None:
    said: list[str] = []
    cache = ReferenceCache(tmp_path, said.append)
    cache.store("k", kept)
    path = cache.path("k")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load("k", WINDOWS) is None
    assert "runs again" in said[0]


def test_an_entry_of_something_else_is_none(tmp_path: Path, kept: KeptPredictions) -> None:
    cache = ReferenceCache(tmp_path)
    cache.store("k", kept)
    os.rename(cache.path("k"), cache.path("other"))
    assert cache.load("other", WINDOWS) is None
    cache.store("k", kept)
    assert cache.load("k", WINDOWS[:2]) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, kept: KeptPredictions) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    ReferenceCache(tmp_path / "file", said.append).store("k", kept)
    assert "not kept" in said[0]


def test_the_key_is_of_all_that_decides(model: Path, tmp_path: Path) -> None:
    same = write_checkpoint(tmp_path / "elsewhere" / "name")
    weights = write_checkpoint(tmp_path / "weights", seed=1)
    config = write_checkpoint(tmp_path / "config", rope_theta=20000.0)
    assert key_of(same) == key_of(model)
    keys = {
        key_of(model),
        key_of(weights),
        key_of(config),
        key_of(model, precision="bfloat16"),
        key_of(model, WINDOWS[:2]),
        key_of(model, [[*WINDOWS[0][:-1], 7], *WINDOWS[1:]]),
        key_of(model, [[*WINDOWS[0], *WINDOWS[1]], WINDOWS[2]]),
    }
    assert len(keys) == 7


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == chosen_folder(None, False) == tmp_path / "dsconv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "dsconv"
    assert chosen_folder(tmp_path, False) == tmp_path
    assert chosen_folder(None, True) is None
    with pytest.raises(UsageError, match="contradict"):
        chosen_folder(tmp_path, True)


def sparse(path: Path, last: bytes) -> None:
    with path.open("wb") as file:
        file.truncate(LARGE)
        file.write(last)


def test_large_files_are_hashed_once_while_they_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, hashed = tmp_path / "large", []
    sparse(path, b"a")
    monkeypatch.setattr(
        "dsconv.convert.files.hashes.sha256_file",
        lambda path: hashed.append(path) or str(len(hashed)),
    )
    cache = tmp_path / "cache"
    assert FileHashes(cache).sha256(path) == FileHashes(cache).sha256(path) == "1"
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # does not set back the inode's
    assert FileHashes(cache).sha256(path) == "2"
    assert FileHashes().sha256(path) == "3"
    (cache / "hashes.json").write_text("[")
    assert FileHashes(cache).sha256(path) == "4"


def test_hashes_of_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"b")
    found = FileHashes().of_files(artifact_files(tmp_path), tmp_path)
    assert list(found) == ["a", "sub/b"]
    assert found["a"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert artifact_files(tmp_path / "a") == [tmp_path / "a"]
    assert combined(found) != combined({**found, "a": found["sub/b"]})
