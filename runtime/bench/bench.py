"""Measure artifacts side by side: load, prefill, decode, memory, and the memory-bandwidth limit.

Every artifact runs in its own process. A round asks each of them once, one after the other, beside
a probe of the machine's read bandwidth, so that a machine that changes its speed changes it for
all. A round during which others used the machine is thrown away and repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dsconv.errors import UsageError
from dsconv.progress import Advance

from .batches import BatchPlan, Room, plan_batches
from .machine import machine_time
from .process import Worker
from .report import Artifact, BatchDecode, BenchReport, Decode, Figures
from .subject import BANDWIDTH, Opened, Subject, Timed
from .weight_bytes import weight_bytes_per_token

MOST_AT_ONCE = 65536  # sequences
ATTEMPTS = 2  # rounds tried per round wanted
SHORTEST_WALL = 0.2  # seconds of a round below which the kernel's ticks say nothing of others

T = TypeVar("T")


@dataclass(frozen=True)
class BenchOptions:
    """What is timed, in tokens; how often; `max_foreign`: share of the machine left to others.

    batches: sequences at once, each after `batch_context` tokens.

    Raises:
        UsageError: a value outside its range.
    """

    prefill: int = 512
    decode: int = 64
    contexts: tuple[int, ...] = (0, 2048, 8192)
    rounds: int = 5
    max_foreign: float = 0.1
    batches: tuple[int, ...] = ()
    batch_context: int = 512

    def __post_init__(self) -> None:
        if min(self.prefill, self.decode, self.rounds) < 1:
            raise UsageError(
                f"prefill {self.prefill}, decode {self.decode}, rounds {self.rounds}: "
                "each must be at least 1",
                "use larger numbers",
            )
        if not self.contexts or min(self.contexts) < 0:
            raise UsageError("a context below 0, or none", "use --context 0 or more")
        if self.batches and (min(self.batches) < 1 or self.batch_context < 1):
            raise UsageError("a batch of no sequences, or without context", "use --batch 1,4,16")
        if max(self.batches, default=0) > MOST_AT_ONCE:
            raise UsageError(
                f"a batch of {max(self.batches)} sequences, limit {MOST_AT_ONCE}",
                "use --batch 1,4,16",
            )
        if not 0 <= self.max_foreign <= 1:
            raise UsageError(
                f"max foreign load {self.max_foreign} is outside 0..1", "use a share, e.g. 0.1"
            )


def options_of(
    sizes: tuple[int, int],
    contexts: Sequence[int] | None,
    rounds: int,
    max_foreign: float,
    batches: Sequence[int] | None,
) -> BenchOptions:
    """What a user asks for; sizes: tokens of the prompt and of a burst of decoding. The first
    context is that of the batches too."""
    default = BenchOptions()
    return BenchOptions(
        *sizes,
        default.contexts if contexts is None else tuple(contexts),
        rounds,
        max_foreign,
        tuple(batches or ()),
        max(1, contexts[0]) if contexts else default.batch_context,
    )


@dataclass(frozen=True)
class Round(Generic[T]):
    """One turn of every artifact, and the machine meanwhile; foreign None: nobody could tell."""

    turns: tuple[T, ...]
    bandwidth: float
    foreign: float | None


@dataclass(frozen=True)
class Startup:
    """A fresh process: loading, then the first token of a prompt."""

    opened: Opened
    first: Timed


class _Processes:
    """The processes of a run, in the order of the subjects, and the rounds they took part in."""

    def __init__(self, subjects: Sequence[Subject], options: BenchOptions) -> None:
        self._options = options
        self._subjects = subjects
        self._used_before = 0.0  # processor seconds of workers that are gone
        self.workers: list[Worker | None] = [None for _ in subjects]
        self.probe = Worker(Subject("", max(s.threads for s in subjects), BANDWIDTH))
        self.kept: list[Round[Any]] = []
        self.discarded = 0

    def open_worker(self, index: int) -> Opened:
        """Load the subject in a new process."""
        before = self.workers[index]
        if before is not None:
            self._used_before += before.used
            before.close()
        worker = self.workers[index] = Worker(self._subjects[index])
        return worker.open()

    def restart(self, index: int) -> Startup:
        """Load the subject in a new process and ask for a first token."""
        return Startup(self.open_worker(index), self.worker(index).prefill(self._options.prefill))

    def worker(self, index: int) -> Worker:
        worker = self.workers[index]
        if worker is None:
            raise RuntimeError("not started")
        return worker

    def rounds(
        self, turn: Callable[[int], T], chosen: Sequence[int], advance: Advance
    ) -> list[Round[T]]:
        """As many rounds over `chosen` subjects as wanted: undisturbed ones as far as possible."""
        found: list[Round[T]] = []
        wanted, quiet = self._options.rounds, 0
        while quiet < wanted and len(found) < ATTEMPTS * wanted:
            found.append(self._round(turn, chosen))
            if (found[-1].foreign or 0.0) <= self._options.max_foreign:
                quiet += 1
                advance(1)
        advance(wanted - quiet)
        kept = quietest(found, wanted)
        self.kept.extend(kept)
        self.discarded += len(found) - wanted
        return kept

    def _round(self, turn: Callable[[int], T], chosen: Sequence[int]) -> Round[T]:
        before, used = machine_time(), self._used()
        bandwidth = self.probe.bandwidth().value
        turns = tuple(turn(index) for index in chosen)
        after = machine_time()
        if before is None or after is None or after.wall - before.wall < SHORTEST_WALL:
            return Round(turns, bandwidth, None)
        return Round(turns, bandwidth, after.foreign_share(before, self._used() - used))

    def _used(self) -> float:
        running = [worker.used for worker in (*self.workers, self.probe) if worker is not None]
        return self._used_before + sum(running) + time.process_time()


def quietest(rounds: Sequence[Round[T]], count: int) -> list[Round[T]]:
    """The `count` rounds that others disturbed least, in their order."""
    order = sorted(range(len(rounds)), key=lambda index: rounds[index].foreign or 0.0)
    return [rounds[index] for index in sorted(order[:count])]


@contextmanager
def _started(subjects: Sequence[Subject], options: BenchOptions) -> Iterator[_Processes]:
    processes = _Processes(subjects, options)
    try:
        yield processes
    finally:
        for worker in (*processes.workers, processes.probe):
            if worker is not None:
                worker.kill()


def planned_rounds(options: BenchOptions) -> int:
    """Rounds of a run without disturbance: startup, prefill, and decode at every context."""
    return options.rounds * (2 + len(options.contexts) + len(set(options.batches)))


@dataclass(frozen=True)
class _Measured:
    """All rounds, the decodes by subject; what became of one subject in them."""

    options: BenchOptions
    startups: Sequence[Round[Startup]]
    prefills: Sequence[Round[Timed]]
    decodes: Sequence[Sequence[Decode]]
    batches: Sequence[Sequence[BatchDecode]]
    weight_bytes: Sequence[int]
    plan: BatchPlan

    def artifact(self, index: int, subject: Subject) -> Artifact:
        tokens, decodes = self.options.prefill, self.decodes[index]
        starts = [entry.turns[index] for entry in self.startups]
        peaks = [entry.turns[index].peak_rss_bytes for entry in self.prefills]
        peaks += [decode.peak_rss_bytes for decode in decodes]
        peaks += [batch.peak_rss_bytes for batch in self.batches[index]]
        return Artifact(
            path=subject.path,
            runtime=starts[0].opened.runtime,
            provider=subject.provider,
            threads=subject.threads,
            load_seconds=Figures.of(start.opened.load_seconds for start in starts),
            first_token_seconds=Figures.of(
                start.opened.load_seconds + start.first.value for start in starts
            ),
            prefill_tokens=tokens,
            cold_prefill=Figures.of(tokens / start.first.value for start in starts),
            prefill=Figures.of(tokens / entry.turns[index].value for entry in self.prefills),
            decodes=tuple(decodes),
            peak_rss_bytes=max(peaks),
            weight_bytes_per_token=self.weight_bytes[index],
            placement=tuple(starts[0].opened.placement),
            batches=tuple(self.batches[index]),
            left_out=self.plan.left_out[index],
        )


def bench(
    subjects: Sequence[Subject], options: BenchOptions, advance: Advance = lambda rounds: None
) -> BenchReport:
    """Measure all subjects, interleaved.

    Raises:
        DsconvError: whatever opening or running one of them raises.
    """
    everyone = range(len(subjects))
    with _started(subjects, options) as processes:
        plan = _plan(processes, subjects, options)
        startups = processes.rounds(processes.restart, everyone, advance)
        lengths = [turn.opened.context_length for turn in startups[0].turns]
        prefills = processes.rounds(
            lambda index: processes.worker(index).prefill(options.prefill), everyone, advance
        )
        decodes: list[list[Decode]] = [[] for _ in subjects]
        weights = [
            weight_bytes_per_token(subject, turn.opened)
            for subject, turn in zip(subjects, startups[0].turns, strict=True)
        ]
        for context in sorted(set(options.contexts)):
            fitting = [i for i in everyone if max(1, context) + options.decode < lengths[i]]
            if fitting:
                rounds = _decode_rounds(processes, context, options, fitting, advance)
                for place, index in enumerate(fitting):
                    decodes[index].append(
                        _decode(rounds, place, context, options.decode, weights[index])
                    )
        batches = _batches(processes, options, plan, advance)
        measured = _Measured(options, startups, prefills, decodes, batches, weights, plan)
        return BenchReport(
            tuple(measured.artifact(index, subjects[index]) for index in everyone),
            Figures.of(entry.bandwidth for entry in processes.kept),
            Figures.of(entry.foreign for entry in processes.kept if entry.foreign is not None),
            processes.discarded,
            options.max_foreign,
        )


def _decode_rounds(
    processes: _Processes,
    context: int,
    options: BenchOptions,
    chosen: Sequence[int],
    advance: Advance,
) -> list[Round[Timed]]:
    tokens = max(1, context)  # there must be a token to begin with
    for index in chosen:  # untimed: fills the caches
        processes.worker(index).decode(tokens, options.decode)
    return processes.rounds(
        lambda index: processes.worker(index).decode(tokens, options.decode), chosen, advance
    )


def _decode(
    rounds: Sequence[Round[Timed]], place: int, context: int, count: int, weight_bytes: int
) -> Decode:
    rates = [count / entry.turns[place].value for entry in rounds]
    fractions = [
        rate * weight_bytes / entry.bandwidth for rate, entry in zip(rates, rounds, strict=True)
    ]
    peak = max(entry.turns[place].peak_rss_bytes for entry in rounds)
    return Decode(context, Figures.of(rates), Figures.of(fractions), peak)


def _plan(processes: _Processes, subjects: Sequence[Subject], options: BenchOptions) -> BatchPlan:
    """Before anything is timed: what nobody can do is refused at once."""
    if not options.batches:
        return BatchPlan((), tuple(() for _ in subjects))
    context, count = options.batch_context, options.decode
    rooms = []
    for index, subject in enumerate(subjects):
        length = processes.open_worker(index).context_length
        fits = context + count <= length
        limit = processes.worker(index).batch_limit(context + count) if fits else 0
        rooms.append(Room(subject.path, length, limit))
    return plan_batches(rooms, options.batches, context, count)


def _batches(
    processes: _Processes, options: BenchOptions, plan: BatchPlan, advance: Advance
) -> list[list[BatchDecode]]:
    """Of every subject, those that it can do."""
    found: list[list[BatchDecode]] = [[] for _ in plan.left_out]
    context, count = options.batch_context, options.decode
    for batch, chosen in plan.sizes:
        if not chosen:
            advance(options.rounds)
            continue

        def turn(index: int, batch: int = batch) -> Timed:
            return processes.worker(index).decode_many(context, batch, count)

        for index in chosen:  # untimed: fills the caches
            processes.worker(index).decode_many(context, batch, 1)
        rounds = processes.rounds(turn, chosen, advance)
        for place, index in enumerate(chosen):
            turns = [entry.turns[place] for entry in rounds]
            rates = Figures.of(batch * count / each.value for each in turns)
            peak = max(each.peak_rss_bytes for each in turns)
            found[index].append(BatchDecode(batch, context, rates, peak))
    return found
