"""Where downloads lie: in the hub's own cache, which other tools share, or as plain files."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from dsconv.atomic import fsync_path
from dsconv.convert.files.cache_folder import default_folder
from dsconv.convert.files.hashes import FileHashes
from dsconv.errors import OutputError

from .hashes import is_whole
from .listing import Listing, RemoteFile
from .messages import Stopped
from .model_name import MODELSCOPE, ModelReference

PARTIAL = ".dsconv-partial"
OWN_FOLDER = ".dsconv"  # in a plain folder: what is not finished, and locks
LOCK_POLL = 0.1  # seconds
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def disk_error(error: OSError, place: Path) -> OutputError:
    """What the operating system said about writing a download."""
    reason = error.strerror or str(error)
    return OutputError(
        f"{error.filename or place}: cannot write: {reason}",
        "free some space, or choose another place: --local-dir, or the variable HF_HOME",
    )


class Store(ABC):
    """Files of one listing. `folder` is what a checkpoint is opened from."""

    folder: Path

    def __init__(self, hashes: FileHashes) -> None:
        self.hashes = hashes

    @abstractmethod
    def find(self, file: RemoteFile) -> Path | None:
        """The file where it is whole and in its place."""

    @abstractmethod
    def partial(self, file: RemoteFile) -> Path:
        """Where it grows."""

    @abstractmethod
    def lock_path(self, file: RemoteFile) -> Path: ...

    @abstractmethod
    def place(self, file: RemoteFile) -> Path:
        """Give the finished, verified partial its final name -> that."""

    @abstractmethod
    def finish(self) -> None:
        """All files are there."""

    def size_of_partial(self, file: RemoteFile) -> int:
        try:
            return min(self.partial(file).stat().st_size, file.size)
        except OSError:
            return 0

    def lock(self, file: RemoteFile, stopping: threading.Event) -> int:
        """Wait until nobody else fetches the file -> a descriptor that keeps it so until closed.

        Raises:
            Stopped: the download was given up meanwhile.
        """
        path = self.lock_path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held it before may have removed the file.
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno in NO_LOCKS:  # some network file systems
                    return descriptor
                os.close(descriptor)
                raise
            os.close(descriptor)
            if stopping.wait(LOCK_POLL):
                raise Stopped


class HubCache(Store):
    """huggingface_hub's layout: blobs/HASH, snapshots/COMMIT/NAME -> blob, refs/REVISION.

    The locks are its own too, so that it and dsconv never fetch the same file at once.
    """

    def __init__(self, listing: Listing, root: Path, hashes: FileHashes) -> None:
        super().__init__(hashes)
        self._reference, self._commit = listing.reference, listing.commit
        self._model = model_folder(root, listing.reference)
        self._locks = root / ".locks" / self._model.name
        self.folder = self._model / "snapshots" / listing.commit

    def _blob(self, file: RemoteFile) -> Path:
        return self._model / "blobs" / file.digest

    def find(self, file: RemoteFile) -> Path | None:
        blob, link = self._blob(file), self.folder / file.name
        if link.is_file() and is_whole(link, file, self.hashes):
            return link
        if is_whole(blob, file, self.hashes):
            return self._link(blob, link)
        return None

    def partial(self, file: RemoteFile) -> Path:
        blob = self._blob(file)
        return blob.with_name(blob.name + PARTIAL)

    def lock_path(self, file: RemoteFile) -> Path:
        return self._locks / f"{file.digest}.lock"

    def place(self, file: RemoteFile) -> Path:
        blob = self._blob(file)
        os.replace(self.partial(file), blob)
        fsync_path(blob.parent)
        return self._link(blob, self.folder / file.name)

    def _link(self, blob: Path, link: Path) -> Path:
        target = os.path.relpath(blob, link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            return link
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{os.getpid()}.{threading.get_ident()}.link")
        try:
            os.symlink(target, fresh)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            os.replace(blob, link)  # no links on this file system: as huggingface_hub does it
            return link
        os.replace(fresh, link)
        return link

    def finish(self) -> None:
        """Note the revision's commit. A cache that cannot be written has it already, or needs it
        not: the snapshot is whole."""
        revision = self._reference.revision or default_revision(self._reference)
        ref = self._model / "refs" / revision
        with suppress(OSError):
            if revision == self._commit or (ref.is_file() and ref.read_text() == self._commit):
                return
            ref.parent.mkdir(parents=True, exist_ok=True)
            fresh = ref.with_name(f"{ref.name}.{os.getpid()}")
            fresh.write_text(self._commit)
            os.replace(fresh, ref)


class PlainFolder(Store):
    """--local-dir: files under their own names, everything else in a folder `.dsconv`."""

    def __init__(self, folder: Path, hashes: FileHashes) -> None:
        super().__init__(hashes)
        self.folder = folder
        self._own = folder / OWN_FOLDER

    def find(self, file: RemoteFile) -> Path | None:
        path = self.folder / file.name
        return path if is_whole(path, file, self.hashes) else None

    def partial(self, file: RemoteFile) -> Path:
        return self._own / (file.digest + PARTIAL)

    def lock_path(self, file: RemoteFile) -> Path:
        return self._own / f"{file.digest}.lock"

    def place(self, file: RemoteFile) -> Path:
        path = self.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.partial(file), path)
        fsync_path(path.parent)
        return path

    def finish(self) -> None:
        """Leave nothing but the model, unless another download is under way there."""
        with suppress(OSError):
            for lock in self._own.glob("*.lock"):
                _remove_if_free(lock)
            self._own.rmdir()


def _remove_if_free(lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.unlink()
    finally:
        os.close(descriptor)


def cache_root(reference: ModelReference) -> Path:
    """HF_HUB_CACHE (or HF_HOME); models of ModelScope lie apart, in dsconv's own folder."""
    if reference.source == MODELSCOPE:
        return default_folder() / "modelscope"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def model_folder(root: Path, reference: ModelReference) -> Path:
    return root / "--".join(("models", *reference.name.split("/")))


def default_revision(reference: ModelReference) -> str:
    return "master" if reference.source == MODELSCOPE else "main"
