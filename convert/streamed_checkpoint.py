"""A checkpoint of the hub whose shards come when they are needed, and go when they are not.

Every shard is fetched whole and verified before a tensor of it is read. Only the headers are read
by themselves, before; they are compared with those of the verified files later.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.files.safetensors import TensorInfo, read_columns, read_rows
from dsconv.convert.hub.client import TRANSIENT, Client
from dsconv.convert.hub.file_choice import refuse_without_weights, side_files, weights
from dsconv.convert.hub.listing import RemoteFile
from dsconv.convert.hub.messages import Stopped, refusal
from dsconv.convert.hub.model_name import parse_reference
from dsconv.convert.hub.pull import Fetcher, Puller
from dsconv.convert.hub.retry import Attempts
from dsconv.convert.hub.stores import PlainFolder, Store
from dsconv.convert.open import open_folder
from dsconv.errors import DownloadError, OutputError, UnsupportedError, UsageError

from .files import limits

SHARDS_HELD = 3  # on the disk at once: the one in use, the one before it, the one to come
POLL = 0.2  # seconds; a signal handler must not take the lock that would wake the others
LENGTH_BYTES = 8  # of a safetensors header


class Shards:
    """Shards on demand, the next one ahead, at most `SHARDS_HELD` in `fetcher.store` at a time.

    shared: where a shard may lie already, to be read and left alone.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        files: Sequence[RemoteFile],
        shared: Store,
        headers: Mapping[str, str],
    ) -> None:
        self._fetcher = fetcher
        self._files = {file.name: file for file in files}
        self._order = list(self._files)
        self._headers = headers  # name -> sha256 of the header that was read ahead
        places = ((name, shared.find(file)) for name, file in self._files.items())
        self._shared = {name: path for name, path in places if path is not None}
        self._changed = threading.Condition()
        self._held: dict[str, Path] = {}  # the least recently used first
        self._users: dict[str, int] = {}
        self._wanted: list[str] = []  # by readers that wait
        self._current = ""
        self._failures: dict[str, BaseException] = {}
        for name in self._order:
            path = fetcher.store.find(self._files[name])
            if path is not None:
                self._held[name] = path
        self._thread = threading.Thread(target=self._run, name="shards", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End a fetch under way; what has come of it stays."""
        self._fetcher.stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    @contextmanager
    def use(self, name: str) -> Iterator[Path]:
        """The shard, whole and verified, for as long as the block lasts.

        Raises:
            DownloadError, OutputError: it cannot be fetched.
        """
        if name in self._shared:
            yield self._shared[name]
            return
        with self._changed:
            self._current = name
            self._failures.pop(name, None)
            while name not in self._held:
                if name in self._failures:
                    raise self._failures[name]
                if name not in self._wanted:
                    self._wanted.append(name)
                if self._fetcher.stopping.is_set():
                    raise Stopped
                self._changed.notify_all()
                self._changed.wait(POLL)
            self._held[name] = self._held.pop(name)
            self._users[name] = self._users.get(name, 0) + 1
            self._changed.notify_all()
            path = self._held[name]
        try:
            yield path
        finally:
            with self._changed:
                self._users[name] -= 1
                self._changed.notify_all()

    def _run(self) -> None:
        while (name := self._next()) is not None:
            try:
                self._fetcher.fetch([self._files[name]])
                path = self._fetcher.store.folder / name
                self._check_header(name, path)
            except Stopped:
                return
            except BaseException as error:
                with self._changed:
                    self._failures[name] = error
                    if name in self._wanted:
                        self._wanted.remove(name)
                    self._changed.notify_all()
                continue
            with self._changed:
                self._held[name] = path
                if name in self._wanted:
                    self._wanted.remove(name)
                self._changed.notify_all()

    def _next(self) -> str | None:
        """Wait for a shard to fetch, and make room for it."""
        with self._changed:
            while not self._fetcher.stopping.is_set():
                name = self._wanted[0] if self._wanted else self._ahead()
                if name is not None and self._make_room(name):
                    return name
                self._changed.wait(POLL)
        return None

    def _ahead(self) -> str | None:
        """The shard after the current one, when it is not here."""
        if not self._current:
            return None
        following = self._order[self._order.index(self._current) + 1 :]
        name = next((name for name in following if name not in self._shared), None)
        return None if name in self._held or name in self._failures else name

    def _make_room(self, wanted: str) -> bool:
        for name in list(self._held):
            if len(self._held) < SHARDS_HELD:
                break
            is_current = name == self._current and wanted not in self._wanted
            if not self._users.get(name) and not is_current:
                self._held.pop(name).unlink(missing_ok=True)
        return len(self._held) < SHARDS_HELD

    def _check_header(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            prefix = file.read(LENGTH_BYTES)
            prefix += file.read(int.from_bytes(prefix, "little"))
        if hashlib.sha256(prefix).hexdigest() != self._headers[name]:
            raise DownloadError(
                f"{self._fetcher.listing.reference}: {name}: its header was another one when it "
                "was read by itself",
                "the endpoint, or a proxy on the way, sends damaged data; run the same command "
                "again with --overwrite",
            )


class StreamedSource(SafetensorsSource):
    """Tensors of shards that are fetched when they are read."""

    def __init__(
        self, infos: Mapping[str, TensorInfo], shards: Shards, hashes: Mapping[str, str]
    ) -> None:
        super().__init__(infos)
        self._shards = shards
        self._hashes = hashes

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        info = self.infos[name]
        with self._shards.use(info.path.name) as path:
            return read_rows(replace(info, path=path), start, stop)

    def columns(self, name: str, start: int, stop: int) -> NDArray[Any]:
        info = self.infos[name]
        with self._shards.use(info.path.name) as path:
            return read_columns(replace(info, path=path), start, stop)

    def sha256(self) -> Mapping[str, str]:
        """Of every shard, as the hub lists them: a `sources.HashedSource`."""
        return self._hashes

    def with_infos(self, infos: Mapping[str, TensorInfo]) -> StreamedSource:
        return StreamedSource(infos, self._shards, self._hashes)


@contextmanager
def streamed_checkpoint(model: str, folder: Path, puller: Puller) -> Iterator[Checkpoint]:
    """Open a model of the hub without its weights, which pass through `folder`.

    The folder is left after an interruption, so that the next run goes on with what it holds.

    Raises:
        UsageError: the model lies on this machine, or has no shards that could be streamed.
        InputError, UnsupportedError, DownloadError, OutputError: as when opening it.
    """
    reference = parse_reference(model)
    if reference.is_gguf:
        raise UsageError(f"{model}: one file cannot be streamed", "leave out --no-keep")
    cached = puller.fetcher(reference)
    refuse_without_weights(cached.listing)
    cached.fetch(side_files(cached.listing))
    files = weights(cached.listing, cached.store.folder)
    cached.store.finish()
    if not all(file.has_sha256 for file in files):
        raise UnsupportedError(f"{model}: shards without sha256", "leave out --no-keep")
    fetcher = replace(cached, store=PlainFolder(folder, FileHashes()), stopping=threading.Event())
    with ExitStack() as stack:
        stack.callback(fetcher.stopping.set)
        stack.enter_context(_stopped_by_signals(fetcher.stopping))
        headers = _write_headers(cached, fetcher.store, files, folder / "headers")
        hashes = {name: hashlib.sha256(text).hexdigest() for name, text in headers.items()}
        shards = Shards(fetcher, files, cached.store, hashes)
        shards.start()
        stack.callback(shards.stop)
        digests = {file.name: file.digest for file in files}

        def attach(source: SafetensorsSource) -> StreamedSource:
            infos = {
                name: replace(info, path=folder / info.path.name)
                for name, info in source.infos.items()
            }
            return StreamedSource(infos, shards, digests)

        opened = open_folder(folder / "headers", attach)
        shutil.rmtree(folder / "headers")
        try:
            yield replace(opened, origin=cached.store.folder)
        except (KeyboardInterrupt, SystemExit, MemoryError, DownloadError, OutputError):
            raise
        except BaseException:
            shards.stop()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shards.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """Whoever waits for a shard must not hold up the end of the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)


def _write_headers(
    fetcher: Fetcher, held: Store, files: Sequence[RemoteFile], folder: Path
) -> dict[str, bytes]:
    """Make a folder that looks like the checkpoint, with holes where the tensors are.

    Returns:
        The header of every shard.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in fetcher.store.folder.iterdir():
        if path.is_file() and not path.name.endswith(".safetensors"):
            shutil.copyfile(path, folder / path.name)
    headers = {}
    for file in files:
        here = fetcher.store.find(file) or held.find(file)
        headers[file.name] = _read_header(fetcher, file, here)
        with (folder / file.name).open("wb") as sparse:
            sparse.write(headers[file.name])
            sparse.truncate(file.size)
    return headers


def _read_header(fetcher: Fetcher, file: RemoteFile, path: Path | None) -> bytes:
    """Length and text of a safetensors header."""
    prefix = _read_range(fetcher, file, path, 0, min(LENGTH_BYTES, file.size))
    length = int.from_bytes(prefix, "little")
    stop = min(file.size, LENGTH_BYTES + min(length, limits.HEADER_BYTES))
    return prefix + _read_range(fetcher, file, path, LENGTH_BYTES, stop)


def _read_range(
    fetcher: Fetcher, file: RemoteFile, path: Path | None, start: int, stop: int
) -> bytes:
    """A few bytes of a file, which may lie here."""
    if stop <= start:
        return b""
    if path is not None:
        with path.open("rb") as content:
            content.seek(start)
            return content.read(stop - start)
    model = str(fetcher.listing.reference)
    attempts = Attempts(fetcher.policy, f"{model}: {file.name}: its header", fetcher.stopping)
    client = Client(fetcher.catalogue.endpoint, fetcher.catalogue.token, fetcher.policy.timeout)
    while True:
        try:
            url = fetcher.catalogue.url(fetcher.listing, file)
            response = client.get(url, {"Range": f"bytes={start}-{stop - 1}"})
            if response.status in (200, 206):
                skipped = start if response.status == 200 else 0  # no ranges: from the beginning
                found = response.raw.read(skipped + stop - start)[skipped:]
                if len(found) == stop - start:
                    return found
                attempts.failed("ended too early")
            elif response.status in (408, 416, 425, 429) or response.status >= 500:
                attempts.failed(f"status {response.status}", response.retry_after)
            else:
                raise refusal(response.status, model, file.name)
        except TRANSIENT as error:
            attempts.failed(type(error).__name__)
        finally:
            client.close()
