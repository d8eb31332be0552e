"""From the name of a model to files on this disk, every byte of them verified."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsconv.convert.files.cache_folder import default_folder
from dsconv.convert.files.hashes import FileHashes
from dsconv.errors import DownloadError, OutputError
from dsconv.progress import Progress, no_progress

from .catalogue import Catalogue, catalogue_of
from .download import Downloads
from .file_choice import chosen_gguf, one_file, refuse_without_weights, side_files, weights
from .listing import Listing, RemoteFile
from .listing_cache import KeptListings, listing_of_snapshot
from .messages import Unreachable
from .model_name import ModelReference, parse_reference
from .retry import Attempts, RetryPolicy
from .stores import HubCache, PlainFolder, Store, cache_root, disk_error

SPARE = 16 << 20  # bytes that a disk should have left


@dataclass(frozen=True)
class Watch:
    """Who is told what happens: a progress bar (title, total, unit), and lines for people."""

    progress: Progress = no_progress
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Pulled:
    """path: the folder with all files, or the one file that was asked for."""

    reference: ModelReference
    path: Path
    commit: str
    files: tuple[RemoteFile, ...]
    fetched_bytes: int


@dataclass(frozen=True)
class Puller:
    """How to pull. local_dir: a plain folder instead of the hub's cache."""

    local_dir: Path | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    watch: Watch = field(default_factory=Watch)

    def pull(self, reference: ModelReference) -> Pulled:
        """Make everything that the model needs lie here.

        Raises:
            DownloadError: the endpoint cannot be reached, has no such model, or sends other bytes
                than it lists.
            OutputError: the disk is full, or refuses.
            UnsupportedError: no safetensors files, and none or several GGUF models.
        """
        fetcher = self.fetcher(reference)
        files = chosen_gguf(fetcher.listing, reference)
        if files:
            wanted = list(files)
            fetched = fetcher.fetch(wanted)
            path = fetcher.store.folder / files[0].name
        else:
            refuse_without_weights(fetcher.listing)
            wanted = list(side_files(fetcher.listing))
            fetched = fetcher.fetch(wanted)
            path = fetcher.store.folder
            shards = weights(fetcher.listing, path)
            fetched += fetcher.fetch(shards)
            wanted += shards
        fetcher.store.finish()
        return Pulled(reference, path, fetcher.listing.commit, tuple(wanted), fetched)

    def fetcher(self, reference: ModelReference) -> Fetcher:
        """The files of a model, and where they will lie."""
        catalogue = catalogue_of(reference)
        listing = self._list(reference, catalogue)
        hashes = FileHashes(default_folder())
        store: Store
        if self.local_dir is not None:
            store = PlainFolder(self.local_dir.expanduser().absolute(), hashes)
        else:
            store = HubCache(listing, cache_root(reference), hashes)
        return Fetcher(catalogue, listing, store, self.policy, self.watch)

    def _list(self, reference: ModelReference, catalogue: Catalogue) -> Listing:
        """Asks the endpoint, except about a commit that it has listed before.

        Without an answer, what the cache holds of the revision must do.
        """
        kept = KeptListings(default_folder(), catalogue.endpoint)
        known = kept.read(reference)
        if known is not None:
            return known
        attempts = Attempts(self.policy, str(reference), threading.Event())
        while True:
            try:
                listing = catalogue.list(reference)
                kept.write(listing)
                return listing
            except Unreachable as error:
                if not error.is_transient:
                    return self._from_cache(reference, error)
                try:
                    attempts.failed(error.message, error.retry_after)
                except DownloadError as last:
                    return self._from_cache(reference, last)

    def _from_cache(self, reference: ModelReference, error: DownloadError) -> Listing:
        found = listing_of_snapshot(reference, cache_root(reference))
        if found is None:
            raise error
        self.watch.say(f"warning: {error.message}; using {found.commit[:12]} from the cache")
        return found


@dataclass(frozen=True)
class Fetcher:
    """Fetches files of one listing into one store."""

    catalogue: Catalogue
    listing: Listing
    store: Store
    policy: RetryPolicy
    watch: Watch
    stopping: threading.Event = field(default_factory=threading.Event)

    def fetch(self, files: Sequence[RemoteFile]) -> int:
        """Fetch what is not there, or not whole -> bytes that came over the network, at most.

        Raises: as `Puller.pull`.
        """
        try:
            missing = [file for file in files if self.store.find(file) is None]
            wanted = {self.store.partial(file): file for file in missing}  # each content once
            sizes = {file: file.size for file in wanted.values()}
            before = sum(self.store.size_of_partial(file) for file in sizes)
            total = sum(sizes.values())
            self._refuse_full_disk(total - before)
            model = str(self.listing.reference)
            with self.watch.progress("download", total, "B") as advance:
                downloads = Downloads(
                    self.catalogue, self.store, model, self.policy, advance, self.stopping
                )
                downloads.fetch([(file, self.catalogue.url(self.listing, file)) for file in sizes])
            for file in missing:  # of the same content as another
                if self.store.find(file) is None:
                    self.fetch([file])
        except OSError as error:
            raise disk_error(error, self.store.folder) from error
        return total - before

    def _refuse_full_disk(self, needed: int) -> None:
        place = self.store.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed + min(needed, SPARE) > free:
            raise OutputError(
                f"{self.store.folder}: needs {_size(needed)} more, {_size(free)} are free",
                "free some space, or choose another place: --local-dir, or the variable HF_HOME",
            )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def snapshot(model: str, watch: Watch | None = None) -> Path:
    """Download what a model needs, at a pinned commit -> its folder, or its file.

    Raises:
        InputError: no such name is possible.
        DownloadError, OutputError, UnsupportedError: as `Puller.pull`.
    """
    return Puller(watch=watch or Watch()).pull(parse_reference(model)).path


def config_folder(model: str) -> Path:
    """Download nothing but config.json -> local folder, which may hold more from before."""
    fetcher = Puller().fetcher(parse_reference(model))
    refuse_without_weights(fetcher.listing)
    fetcher.fetch([one_file(fetcher.listing, "config.json")])
    fetcher.store.finish()
    return fetcher.store.folder
