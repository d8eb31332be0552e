"""Artifacts, and beside them other runtimes on the same checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsconv.atomic import output_folder
from dsconv.errors import InputError, UsageError
from dsconv.runtime.console import progress, say
from dsconv.runtime.model_paths import local_path
from dsconv.runtime.sessions.load import DEFAULT_CACHE

from .bench import BenchOptions, bench, planned_rounds
from .peers import Peer, find_peer
from .report import BenchReport
from .subject import Subject

PEER_BITS = (4, 8)


@dataclass(frozen=True)
class Against:
    """Which other runtimes to measure; the checkpoint and bits of their own quantization.

    folder: where their models are kept and found again; None throws them away.

    Raises:
        UsageError: the checkpoint is missing, or the bits are not 4 or 8.
        ProviderError: a runtime is not installed.
    """

    names: tuple[str, ...] = ()
    checkpoint: str | None = None
    bits: int = 4
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.bits not in PEER_BITS:
            raise UsageError(f"bits is {self.bits}, the peers have 4 and 8", "use --bits 4 or 8")
        for name in self.names:
            self._check(find_peer(name))

    def _check(self, peer: Peer) -> None:
        if self.checkpoint is None and not self.kept(peer):
            raise UsageError(
                f"{peer.name} needs the unquantized checkpoint to make its own model from",
                "name it with --checkpoint MODEL",
            )

    def kept(self, peer: Peer) -> Path | None:
        """The folder of the peer's model from an earlier run, if there is one."""
        if self.folder is None or not self.place(self.folder, peer).is_dir():
            return None
        return self.place(self.folder, peer)

    def place(self, folder: Path, peer: Peer) -> Path:
        return folder / f"{peer.name}-int{self.bits}"


@dataclass(frozen=True)
class BenchRequest:
    """What is measured, and how; kv: type of the native engine's cache; cache_bytes: of a batch's
    keys and values, in artifacts of ours (0: what is usual).

    Raises:
        UsageError: memory for batches, and no batches.
    """

    artifacts: tuple[str, ...]
    threads: int
    options: BenchOptions
    against: Against
    provider: str = "cpu"
    allow_fallback: bool = False
    kv: str = DEFAULT_CACHE
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        if self.cache_bytes and not self.options.batches:
            raise UsageError(
                "--cache-memory is for the sequences of --batch, which is missing",
                "add --batch 1,4,16, or leave out --cache-memory",
            )

    def subjects(self) -> list[Subject]:
        """
        Raises:
            InputError: one of them does not exist.
        """
        for artifact in self.artifacts:
            if not Path(artifact).expanduser().exists():
                raise InputError(f"{artifact}: no such file or folder", "export it first")
        return [
            Subject(
                artifact,
                self.threads,
                provider=self.provider,
                kv=self.kv,
                allow_fallback=self.allow_fallback,
                cache_bytes=self.cache_bytes,
            )
            for artifact in self.artifacts
        ]


def bench_artifacts(request: BenchRequest) -> BenchReport:
    """Measure the artifacts and whatever they are compared with.

    Raises:
        DsconvError: what opening, building or running one of them raises.
    """
    ours, against, options = request.subjects(), request.against, request.options
    with _folder(against) as folder:
        theirs = [_peer_subject(against, name, folder, request.threads) for name in against.names]
        with progress("bench", planned_rounds(options), "rounds") as advance:
            return bench([*ours, *theirs], options, advance)


@contextmanager
def _folder(against: Against) -> Iterator[Path]:
    if against.folder is not None:
        yield against.folder
        return
    with tempfile.TemporaryDirectory(prefix="dsconv-peers-") as scratch:
        yield Path(scratch)


def _peer_subject(against: Against, name: str, folder: Path, threads: int) -> Subject:
    peer = find_peer(name)
    kept = against.kept(peer)
    if kept is None:
        kept = against.place(folder, peer)
        say(f"{name} {peer.version}: building its own int{against.bits} of {against.checkpoint}")
        with output_folder(kept) as built:
            peer.build(local_path(str(against.checkpoint)), against.bits, built)
    return Subject(str(kept), threads, name)
