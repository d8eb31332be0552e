"""Downloads: right bytes or a sentence, whatever server and disk do; resumed, and shared."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, assert_refused, dsconv
from hub_server import COMMIT, OLD_COMMIT, Fault, HubServer, serving

from dsconv.convert.hub import download
from dsconv.convert.hub.model_name import parse_reference
from dsconv.convert.hub.pull import Puller, Watch
from dsconv.convert.hub.retry import RetryPolicy
from dsconv.errors import DownloadError, InputError, OutputError, UnsupportedError, UsageError

MODEL = "org/small"
BIG, SIZE = "model.safetensors", 21_000_001
QUICK = RetryPolicy(limit=3, first_wait=0.01, timeout=0.4)
MIB = 1 << 20


def random_bytes(size: int, seed: int = 0) -> bytes:
    import numpy as np

    return np.random.default_rng(seed).bytes(size)


GGUFS = (
    *("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "mmproj-m-f16.gguf", "m.imatrix.gguf"),
    *(f"Q8_0/m-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)),
    *(f"m-IQ2_M-0000{number}-of-00002.gguf" for number in (1,)),
)


def write_ggufs(served: Path, name: str, files: Sequence[str]) -> None:
    for number, file in enumerate(files):
        path = served / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random_bytes(500, number))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are noise: nothing here opens them."""
    root = tmp_path_factory.mktemp("served")
    folder = root / MODEL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "empty.txt").write_bytes(b"")
    (folder / BIG).write_bytes(random_bytes(SIZE))
    (folder / "q4.gguf").write_bytes(random_bytes(1000, 1))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    write_ggufs(root, "org/many-gguf", GGUFS)
    write_ggufs(root, "org/one-gguf", ["m-Q4_0.gguf", "mmproj-m.gguf"])
    return root


@pytest.fixture
def hub(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The stand-in, and this process pointed at it, with caches of its own."""
    from huggingface_hub import constants

    with serving(served) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def pull(model: str = MODEL, policy: RetryPolicy = QUICK, **options: Any) -> Path:
    return Puller(policy=policy, **options).pull(parse_reference(model)).path


def assert_right(folder: Path, served: Path, *names: str) -> None:
    for name in names or ("config.json", "tokenizer.json", "empty.txt", BIG):
        assert (folder / name).read_bytes() == (served / MODEL / name).read_bytes(), name


def tree(folder: Path) -> dict[str, str]:
    """Every path below, with what it is."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def environment(hub: HubServer, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / "xdg"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }


# -------------------------------------------------------------------- the way it should go


def test_the_cache_is_the_hubs_own(hub: HubServer, served: Path, tmp_path: Path) -> None:
    folder = pull()
    assert folder == tmp_path / "hub" / "models--org--small" / "snapshots" / COMMIT
    assert_right(folder, served)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["config.json", "tokenizer.json", "empty.txt", BIG]
    )
    for path in folder.iterdir():
        assert path.resolve().parent == tmp_path / "hub" / "models--org--small" / "blobs"
    assert (folder.parents[1] / "refs" / "main").read_text() == COMMIT


def test_other_tools_find_everything(hub: HubServer, served: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    folder = pull("org/small@v1")
    found = snapshot_download(
        MODEL, revision="v1", local_files_only=True, cache_dir=tmp_path / "hub"
    )
    assert Path(found) == folder
    assert_right(Path(found), served)


def test_what_other_tools_fetched_is_used(hub: HubServer, served: Path, tmp_path: Path) -> None:
    code = (
        "from huggingface_hub import snapshot_download\n"
        "print(snapshot_download('org/small', ignore_patterns=['*.bin', '*.gguf']))\n"
    )
    variables = {**os.environ, **environment(hub, tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    there = subprocess.check_output([sys.executable, "-c", code], env=variables, text=True).strip()
    hub.calls.clear()
    assert str(pull()) == there
    assert hub.fetched() == set()
    assert_right(Path(there), served)


def test_a_plain_folder(hub: HubServer, served: Path, tmp_path: Path) -> None:
    folder = pull(local_dir=tmp_path / "plain")
    assert folder == tmp_path / "plain"
    assert_right(folder, served)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["config.json", "tokenizer.json", "empty.txt", BIG]
    )
    assert not (tmp_path / "hub").exists()


def test_one_gguf_file(hub: HubServer, served: Path) -> None:
    path = pull("hf://org/small@v1/q4.gguf")
    assert path.name == "q4.gguf"
    assert path.parent.name == OLD_COMMIT
    assert path.read_bytes() == (served / MODEL / "q4.gguf").read_bytes()
    assert hub.fetched() == {"q4.gguf"}


def test_a_gguf_file_that_is_not_there(hub: HubServer) -> None:
    with pytest.raises(DownloadError, match=r"no file q5\.gguf") as raised:
        pull("hf://org/small/q5.gguf")
    assert "q4.gguf" in raised.value.hint


def test_a_gguf_model_by_a_word_of_its_name(hub: HubServer) -> None:
    assert pull("org/many-gguf:q4_k_m").name == "m-Q4_K_M.gguf"
    assert hub.fetched() == {"m-Q4_K_M.gguf"}
    for name in ("org/many-gguf:Q8_0", "hf://org/many-gguf/Q8_0/m-Q8_0-00003-of-00003.gguf"):
        path = pull(name)
        assert path.name == "m-Q8_0-00001-of-00003.gguf"
        assert len(list(path.parent.iterdir())) == 3
    for name, words in (
        ("org/many-gguf:Q4_K", r"no GGUF file of Q4_K"),
        ("org/many-gguf:m", r"m stands in 4 GGUF models: .*m-Q4_K_S\.gguf"),
        ("org/many-gguf:IQ2_M", r"no file m-IQ2_M-00002-of-00002\.gguf"),
    ):
        with pytest.raises(DownloadError, match=words):
            pull(name)
    words = r"4 GGUF models: .*m-Q8_0-00001-of-00003\.gguf \(3 parts\), m-IQ2_M.*m-Q4_K_M\.gguf"
    with pytest.raises(UnsupportedError, match=words) as raised:
        pull("org/many-gguf")
    assert "hf://org/many-gguf/" in raised.value.hint


def test_the_only_gguf_model(hub: HubServer) -> None:
    assert pull("org/one-gguf").name == "m-Q4_0.gguf"
    assert hub.fetched() == {"m-Q4_0.gguf"}


def test_several_ranges_of_a_file_at_once(hub: HubServer) -> None:
    pull()
    ranges = [call.range for call in hub.calls if call.name == BIG]
    assert len(ranges) == -(-SIZE // download.PIECE)
    assert len(set(ranges)) == len(ranges)
    assert hub.sent(BIG) == SIZE  # and no byte twice
    resolved = [call for call in hub.calls if "/resolve/" in call.path and BIG in call.path]
    assert len(resolved) <= download.CONNECTIONS  # where it leads is not asked for every piece


def test_progress_ends_at_the_total(hub: HubServer) -> None:
    from contextlib import contextmanager

    moves: list[int] = []
    totals: list[int] = []

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        totals.append(total)
        yield moves.append

    hub.faults = [Fault(BIG, 2, truncate=100_000), Fault(BIG, 1, flip=9_000_000)]
    pull(watch=Watch(progress))
    assert sum(moves) == sum(totals) >= SIZE


def test_only_the_shards_that_the_index_names(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "other" / "org" / "sharded"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name in ("a.safetensors", "b.safetensors", "other.safetensors"):
        (folder / name).write_bytes(random_bytes(100, len(name)))
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with serving(tmp_path / "other") as other:
        hub.models["org/sharded"] = other.models["org/sharded"]
        found = pull("org/sharded")
        assert "other.safetensors" not in {path.name for path in found.iterdir()}
        index["weight_map"]["z"] = "c.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        hub.models["org/sharded"] = {
            name: type(file)(file.path, name) for name, file in other.models["org/sharded"].items()
        }
        with pytest.raises(DownloadError, match=r"names 'c\.safetensors'"):
            pull("org/sharded@v1")


def test_two_files_of_the_same_content_come_once(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "other" / "org" / "twins"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text('{"the same": 1}')
    (folder / "model.safetensors").write_bytes(b"weights")
    with serving(tmp_path / "other") as other:
        hub.models["org/twins"] = other.models["org/twins"]
        for options in ({}, {"local_dir": tmp_path / "plain"}):
            found = pull("org/twins", **options)
            for name in ("config.json", "tokenizer.json"):
                assert (found / name).read_text() == '{"the same": 1}'
    jsons = [call for call in hub.calls if call.name.endswith(".json")]
    assert len(jsons) == 1 + 2


# -------------------------------------------------------------------- what the server does

MIDDLE = SIZE // 2
FAULTS = {
    "truncated": Fault(BIG, truncate=50_000),
    "truncated at once": Fault(BIG, truncate=0),
    "dropped": Fault(BIG, drop=True),
    "first byte flipped": Fault(BIG, flip=0),
    "middle byte flipped": Fault(BIG, flip=MIDDLE),
    "last byte flipped": Fault(BIG, flip=SIZE - 1),
    "too many requests": Fault(BIG, status=429, retry_after="0"),
    "timeout": Fault(BIG, status=408),
    "500": Fault(BIG, status=500),
    "502": Fault(BIG, status=502),
    "503": Fault(BIG, status=503),
    "504": Fault(BIG, status=504),
    "stalled": Fault(BIG, stall=100_000),
    "range ignored": Fault(BIG, ignore_range=True),
    "too large": Fault(BIG, size_error=7),
    "too small": Fault(BIG, size_error=-7),
    "range refused": Fault(BIG, status=416),
}
# What ends well even when it never stops: every answer brings something.
HARMLESS = ("range ignored",)


def fresh(fault: Fault, times: int) -> Fault:
    return Fault(**{**vars(fault), "times": times})


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_passes(hub: HubServer, served: Path, kind: str) -> None:
    hub.faults = [fresh(FAULTS[kind], 1)]
    assert_right(pull(), served)
    assert hub.faults[0].times == 0


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_stays(hub: HubServer, served: Path, tmp_path: Path, kind: str) -> None:
    hub.faults = [fresh(FAULTS[kind], 10**9)]
    if kind in HARMLESS:
        return assert_right(pull(), served)
    with pytest.raises(DownloadError) as raised:
        pull()
    assert BIG in raised.value.message
    assert raised.value.hint
    snapshot = tmp_path / "hub" / "models--org--small" / "snapshots" / COMMIT
    assert not (snapshot / BIG).exists()
    assert not any(path.name == SHA256 for path in (tmp_path / "hub").rglob("*"))
    hub.faults = []
    assert_right(pull(), served)


SHA256 = hashlib.sha256(random_bytes(SIZE)).hexdigest()


def test_a_wrong_hash_is_told_with_both(hub: HubServer) -> None:
    hub.faults = [Fault(BIG, flip=1)]
    damaged = bytearray(random_bytes(SIZE))
    damaged[1] ^= 0x40
    with pytest.raises(DownloadError) as raised:
        pull()
    for word in (BIG, SHA256, hashlib.sha256(damaged).hexdigest()):
        assert word in raised.value.message


def test_a_wrong_git_hash(hub: HubServer) -> None:
    hub.faults = [Fault("tokenizer.json", flip=1)]
    with pytest.raises(DownloadError, match=r"tokenizer\.json: git sha1 is"):
        pull()


def test_retry_after_is_waited_for(hub: HubServer) -> None:
    hub.faults = [Fault(BIG, 1, status=429, retry_after="1")]
    start = time.monotonic()
    pull()
    assert time.monotonic() - start >= 1


def test_retry_after_a_day_is_told_at_once(hub: HubServer) -> None:
    hub.faults = [Fault(BIG, status=429, retry_after="86400")]
    with pytest.raises(DownloadError, match="86400 s"):
        pull()


def test_a_connection_that_ends_after_every_megabyte(hub: HubServer, served: Path) -> None:
    """Many failures, but none without progress."""
    hub.faults = [Fault(BIG, truncate=MIB)]
    assert_right(pull(), served)
    assert hub.sent(BIG) < SIZE + MIB


def test_no_ranges_and_a_drop_in_the_middle(hub: HubServer, served: Path) -> None:
    hub.faults = [Fault(BIG, 4, ignore_range=True, truncate=9_000_000)]
    hub.faults += [Fault(BIG, ignore_range=True)]
    assert_right(pull(), served)


def test_a_busy_hub_is_asked_again(hub: HubServer, served: Path) -> None:
    hub.settings.listing_statuses = [503, 429]
    assert_right(pull(), served)


def test_a_hub_that_stays_busy(hub: HubServer) -> None:
    hub.settings.listing_statuses = [503] * 99
    with pytest.raises(DownloadError, match="status 503"):
        pull()


# -------------------------------------------------------------------- hostile endpoints

NAMES = [
    "../evil.json",
    "../../../../evil.json",
    "a/../../evil.json",
    "/etc/evil.json",
    "//evil.json",
    "..",
    ".",
    "",
    "./config2.json",
    "a//b.json",
    "..\\evil.json",
    "a\\b.json",
    "C:evil.json",
    "C:\\evil.json",
    "c:/evil.json",
    "evil\0.json",
    "evil\n.json",
    "evil\x1b[2J.json",
    "con.json",
    "NUL.json",
    "com1.json",
    "Lpt9.json",
    "aux.x.json",
    "evil?.json",
    "evil*.json",
    "evil<.json",
    'evil".json',
    "evil|.json",
    "evil:stream.json",
    " evil.json",
    "x" * 300 + ".json",
    "\ud800.json",
    "CONFIG.json",
    "Config.JSON/../config.json",
    None,
    7,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:24])
def test_hostile_names(hub: HubServer, tmp_path: Path, name: Any) -> None:
    entry = {"rfilename": name, "size": 2, "blobId": "0" * 40}

    def edit(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "siblings": [*content["siblings"], entry]}

    hub.settings.edit = edit
    refused_with_nothing_written(hub, tmp_path)


def refused_with_nothing_written(hub: HubServer, tmp_path: Path) -> None:
    for options in ({}, {"local_dir": tmp_path / "plain" / "inside"}):
        with pytest.raises(DownloadError):
            pull(**options)
    assert hub.fetched() == set()
    there = set(tree(tmp_path))  # nothing but what was listed, under a name that is a hash
    listings = {
        name for name in there if re.fullmatch(r"xdg/dsconv/listings/[0-9a-f]{40}\.json", name)
    }
    assert there - listings <= {"xdg", "xdg/dsconv", "xdg/dsconv/listings"}


HASHES = ["", "0" * 39, "0" * 41, "../" + "0" * 37, "G" * 40, "0" * 39 + "\n", "A" * 40, 5]


@pytest.mark.parametrize("value", HASHES, ids=ascii)
@pytest.mark.parametrize("place", ["commit", "blob", "lfs"])
def test_hostile_hashes(hub: HubServer, tmp_path: Path, place: str, value: Any) -> None:
    def edit(content: dict[str, Any]) -> dict[str, Any]:
        if place == "commit":
            return {**content, "sha": value}
        for sibling in content["siblings"]:
            if place == "blob" and sibling["rfilename"] == "config.json":
                sibling["blobId"] = value
            if place == "lfs" and sibling["rfilename"] == BIG:
                sibling["lfs"]["sha256"] = value
        return content

    hub.settings.edit = edit
    refused_with_nothing_written(hub, tmp_path)


@pytest.mark.parametrize("size", [-1, 2**63, "5", 1.5, None, True])
def test_hostile_sizes(hub: HubServer, tmp_path: Path, size: Any) -> None:
    def edit(content: dict[str, Any]) -> dict[str, Any]:
        for sibling in content["siblings"]:
            if sibling["rfilename"] == "config.json":
                sibling["size"] = size
        return content

    hub.settings.edit = edit
    refused_with_nothing_written(hub, tmp_path)


@pytest.mark.parametrize("answer", [[], None, 5, {}, {"sha": COMMIT}, {"id": MODEL}, "text"])
def test_answers_that_make_no_sense(hub: HubServer, tmp_path: Path, answer: Any) -> None:
    hub.settings.edit = lambda content: answer
    with pytest.raises((DownloadError, UnsupportedError)):
        pull()
    assert hub.fetched() == set()


@pytest.mark.parametrize(
    "revision", ["../../x", "a..b", "..", "a//b", "/etc", "a/", ".hidden", "-option"]
)
def test_revisions_that_lead_out(hub: HubServer, revision: str) -> None:
    with pytest.raises(InputError):
        pull(f"org/small@{revision}")
    assert hub.calls == []


def test_the_token_stays_with_its_host(
    hub: HubServer, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.settings.token = "hf_secret"
    assert_right(pull(), served)
    own = hub.url.removeprefix("http://")
    for call in hub.calls:
        assert (call.authorization == "Bearer hf_secret") == (call.host == own), call
    assert {call.host for call in hub.calls if call.name == BIG} != {own}


def test_a_model_that_wants_a_token(hub: HubServer) -> None:
    hub.settings.token = "hf_secret"
    with pytest.raises(DownloadError, match="private") as raised:
        pull()
    assert "HF_TOKEN" in raised.value.hint


# -------------------------------------------------------------------- what lies in the cache


def blob(tmp_path: Path, name: str) -> Path:
    return (tmp_path / "hub/models--org--small/snapshots" / COMMIT / name).resolve()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("name", [BIG, "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "grown", "gone"])
def test_damage_in_the_cache_is_found_and_mended(
    hub: HubServer, served: Path, tmp_path: Path, name: str, damage: str
) -> None:
    folder = pull()
    path = blob(tmp_path, name)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "flipped":
        flip(path, path.stat().st_size // 2)
    elif damage == "grown":
        with path.open("ab") as file:
            file.write(b"x")
    else:
        path.unlink()
    hub.calls.clear()
    assert pull() == folder
    assert hub.fetched() == {name}
    assert_right(folder, served)


def test_large_files_are_hashed_once(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsconv.convert.files.hashes.LARGE", MIB)
    read: list[Path] = []

    def sha256_file(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("dsconv.convert.files.hashes.sha256_file", sha256_file)
    pull()
    pull()
    assert read == []  # hashed while it came
    state = blob(tmp_path, BIG).stat()
    flip(blob(tmp_path, BIG), 5)
    os.utime(blob(tmp_path, BIG), ns=(state.st_atime_ns, state.st_mtime_ns))
    hub.calls.clear()
    pull()  # the time of modification is as before, and the size
    assert hub.fetched() == {BIG}
    (tmp_path / "xdg" / "dsconv" / "hashes.json").unlink()
    read.clear()
    pull()
    pull()
    assert [path.resolve() for path in read] == [blob(tmp_path, BIG)]


@pytest.mark.parametrize("model", [f"org/small@{COMMIT}", MODEL, "org/small@v1"])
def test_a_whole_cache_needs_no_network(
    hub: HubServer, served: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = pull(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.calls.clear()
    said: list[str] = []
    assert pull(model, watch=Watch(say=said.append)) == folder
    assert_right(folder, served)
    assert bool(said) == (not model.endswith(COMMIT))
    shutil.rmtree(tmp_path / "xdg")  # nor does it need what dsconv remembers
    assert pull(model, watch=Watch(say=said.append)) == folder
    assert said[-1].startswith("warning: ")
    os.truncate(folder / BIG, 5)
    for name in ("damaged", "missing"):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
            pull(model)
        if name == "damaged":
            (folder / BIG).unlink()
    assert hub.calls == []


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def test_a_read_only_cache(hub: HubServer, served: Path, tmp_path: Path) -> None:
    folder, cache = pull(), tmp_path / "hub"
    variables = {**os.environ, **environment(hub, tmp_path), "HF_HUB_CACHE": str(cache)}
    as_read_only = ["unshare", "-rm", "sh", "-c", READ_ONLY, str(cache)]
    if shutil.which("unshare") is None or subprocess.call([*as_read_only, "true"]) != 0:
        pytest.skip("cannot mount a folder read-only here")
    command = [*as_read_only, sys.executable, "-m", "dsconv", "pull", MODEL]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.stdout.strip() == str(folder), done.stderr
    blob(tmp_path, BIG).unlink()
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), 6, "Read-only file system")


def test_a_full_disk_is_known_before(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"needs 21\.0 MB more, 1\.0 MB are free"):
        pull()
    assert BIG not in hub.fetched()


def test_a_disk_that_becomes_full(hub: HubServer, served: Path, tmp_path: Path) -> None:
    """The partial file stays, and goes on when there is room."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))\n"
        "sys.argv = ['dsconv', 'pull', 'org/small']\n"
        "from dsconv.cli import main; main()\n"
    )
    variables = {**os.environ, **environment(hub, tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 6, done.stderr
    assert "File too large" in done.stderr
    before = hub.sent(BIG)
    outcome = dsconv("pull", MODEL, environment=environment(hub, tmp_path))
    assert outcome.code == 0, outcome.err
    assert hub.sent(BIG) - before == SIZE - 9_000_000
    assert_right(Path(outcome.out.strip()), served)


# -------------------------------------------------------------------- processes


def test_the_command(hub: HubServer, served: Path, tmp_path: Path) -> None:
    variables = environment(hub, tmp_path)
    outcome = dsconv("pull", MODEL, "--json", environment=variables)
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert (found["name"], found["revision"], found["source"]) == (MODEL, None, "hub")
    assert found["commit"] == COMMIT
    assert_right(Path(found["path"]), served)
    listed = {entry["name"]: entry for entry in found["files"]}
    assert listed[BIG] == {"name": BIG, "size_bytes": SIZE, "sha256": SHA256}
    assert len(listed["config.json"]["git_sha1"]) == 40
    assert found["size_bytes"] == found["fetched_bytes"] > SIZE
    again = dsconv("pull", MODEL, environment=variables)
    assert again.out == found["path"] + "\n"
    assert "fetched nothing" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["org/none"], 5, "org/none"),
        (["org/small@v9"], 5, "no such revision"),
        (["not a name"], 3, "not a hub name"),
        (["org/small", "--source", "elsewhere"], 2, "elsewhere"),
        (["hf://org/small", "--source", "modelscope"], 2, "--source"),
        ([str(Path(__file__).parent)], 2, "is on this machine"),
    ],
)
def test_refusals(
    hub: HubServer, tmp_path: Path, arguments: list[str], code: int, word: str
) -> None:
    outcome = dsconv("pull", *arguments, environment=environment(hub, tmp_path))
    assert_refused(outcome, code, word)


def test_no_network(tmp_path: Path, hub: HubServer) -> None:
    variables = {**environment(hub, tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    outcome = dsconv("pull", MODEL, environment=variables)
    assert_refused(outcome, 5, "cannot reach the hub", "HF_ENDPOINT")


def start_pull(hub: HubServer, home: Path, model: str = MODEL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dsconv", "pull", model],
        env={**os.environ, **environment(hub, home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_end_leaves_what_came(
    hub: HubServer, served: Path, tmp_path: Path, number: int, code: int
) -> None:
    hub.settings.rate = 2e6
    blobs = tmp_path / "hf/hub/models--org--small/blobs"
    with start_pull(hub, tmp_path) as process:
        wait_until(lambda: size_of_partial(blobs) > MIB)
        process.send_signal(number)
        start = time.monotonic()
        assert process.wait(10) == code
        assert time.monotonic() - start < 2
        assert process.stderr is not None
        assert "resumes where it stopped" in process.stderr.read()
    kept = size_of_partial(blobs)
    assert kept
    time.sleep(0.3)  # the server notices, and writes its log
    hub.settings.rate = 0
    hub.calls.clear()
    outcome = dsconv("pull", MODEL, environment=environment(hub, tmp_path))
    assert outcome.code == 0, outcome.err
    assert hub.sent(BIG) == SIZE - kept
    assert_right(Path(outcome.out.strip()), served)


def test_two_processes_share_the_work(hub: HubServer, served: Path, tmp_path: Path) -> None:
    hub.settings.rate = 8e6
    pair = [start_pull(hub, tmp_path) for _ in range(2)]
    folders = [process.communicate(timeout=60)[0].strip() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert folders[0] == folders[1]
    assert hub.sent(BIG) == SIZE
    assert_right(Path(folders[0]), served)


def size_of_partial(blobs: Path) -> int:
    """Of the one file that is large."""
    found = list(blobs.glob("*.dsconv-partial"))
    assert len([path for path in found if len(path.name) > 64]) <= 1
    with suppress(FileNotFoundError):  # a small one that is complete now
        return sum(path.stat().st_size for path in found)
    return 0


def kill_and_resume(root: Path, home: Path, kills: int, rate: float) -> list[int]:
    """Kill -9 a download again and again -> bytes that each kill cost, by the server's log.

    Every kill waits for its share of the file; where that is there already it comes early.
    """
    costs, size = [], (root / "org/large" / BIG).stat().st_size
    with serving(root) as hub:
        blobs = home / "hf/hub/models--org--large/blobs"
        hub.settings.rate = rate
        kept = 0
        for number in range(1, kills + 1):
            before = hub.sent(BIG)
            with start_pull(hub, home, "org/large") as process:
                goal = size * number // (kills + 5)
                if kept < goal:
                    wait_until(lambda goal=goal: size_of_partial(blobs) >= goal)  # type: ignore[misc]
                else:
                    time.sleep(1)  # it is fetching again
                time.sleep(0.05 * (number % 5))
                process.kill()
            time.sleep(0.3)  # the server notices, and writes its log
            now = size_of_partial(blobs)
            costs.append(hub.sent(BIG) - before - (now - kept))
            kept = now
        hub.settings.rate = 0
        before = hub.sent(BIG)
        outcome = dsconv("pull", "org/large", environment=environment(hub, home))
        assert outcome.code == 0, outcome.err
        assert hub.sent(BIG) - before == size - kept
        folder = Path(outcome.out.strip())
        assert (folder / BIG).read_bytes() == (root / "org/large" / BIG).read_bytes()
        assert [path for path in blobs.iterdir() if "partial" in path.name] == []
    return costs


def write_large(root: Path, size: int) -> None:
    folder = root / "org" / "large"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / BIG).write_bytes(random_bytes(size, 5))


def test_a_kill_costs_little(tmp_path: Path) -> None:
    write_large(tmp_path / "served", 60_000_000)
    costs = kill_and_resume(tmp_path / "served", tmp_path, 3, 8e6)
    assert max(costs) <= 16 * MIB


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    write_large(tmp_path / "served", 60_000_000)
    costs = kill_and_resume(tmp_path / "served", tmp_path, 20, 2e6)
    print("lost bytes per kill:", sorted(costs))
    assert max(costs) <= 16 * MIB


# -------------------------------------------------------------------- ModelScope


@pytest.fixture
def modelscope(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    return hub


def test_modelscope(modelscope: HubServer, served: Path, tmp_path: Path) -> None:
    """As it lists files, with a shortened commit; a stand-in for it is all that was tested."""
    for model in ("modelscope://org/small", "modelscope://org/small@v1"):
        folder = pull(model)
        assert folder.name == (OLD_COMMIT if model.endswith("v1") else COMMIT)
        assert folder.is_relative_to(tmp_path / "xdg" / "dsconv" / "modelscope")
        assert_right(folder, served)
    bodies = [call for call in modelscope.calls if "FilePath=" in call.path]
    assert bodies
    assert all(re.search(r"Revision=[ab]{40}&", call.path) for call in bodies)
    assert not (tmp_path / "hub").exists()


def test_modelscope_by_command(modelscope: HubServer, served: Path, tmp_path: Path) -> None:
    variables = {**environment(modelscope, tmp_path), "MODELSCOPE_ENDPOINT": modelscope.url}
    arguments = ["pull", MODEL, "--source", "modelscope", "--local-dir", tmp_path / "plain"]
    outcome = dsconv(*arguments, "--json", environment=variables)
    assert outcome.code == 0, outcome.err
    assert (outcome.json["source"], outcome.json["commit"]) == ("modelscope", COMMIT)
    assert all("sha256" in file for file in outcome.json["files"])
    assert_right(tmp_path / "plain", served)


def test_modelscope_sends_other_bytes(modelscope: HubServer) -> None:
    modelscope.faults = [Fault("config.json", flip=2)]
    with pytest.raises(DownloadError, match=r"config\.json: sha256 is"):
        pull("modelscope://org/small")


@pytest.mark.parametrize("model", ["modelscope://org/none", "modelscope://org/small@v9"])
def test_what_modelscope_does_not_have(modelscope: HubServer, model: str) -> None:
    with pytest.raises(DownloadError, match="not found"):
        pull(model)


def test_no_modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DownloadError, match="cannot reach ModelScope"):
        pull("modelscope://org/small")


def test_unknown_sources() -> None:
    with pytest.raises(UsageError):
        parse_reference("org/model", "elsewhere")
