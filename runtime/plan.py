"""What a quantization run will need of this machine, before any weight is read.

`predict` measures the machine for about two seconds; `refuse_what_cannot_fit` does not, and is sure
of what it refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconv.atomic import free_bytes
from dsconv.convert.checkpoint.checkpoint import Checkpoint, refuse_special_ids_beyond
from dsconv.convert.config_only import open_for_planning
from dsconv.convert.quantize.cost import cost_of
from dsconv.convert.quantize.cost_model import Cost, Step, Windows, Work, Workload
from dsconv.convert.quantize.options import CALIBRATED, BitsTarget, QuantizeOptions
from dsconv.convert.quantize.run import refuse_quantized
from dsconv.convert.quantize.target_range import refuse_impossible
from dsconv.convert.quantize.work_rates import Rates, measure
from dsconv.errors import DsconvError, OutputError, UnsupportedError
from dsconv.runtime.calibration.text_windows import CalibrationOptions, shares

from .console import size_text
from .memory import machine_memory_bytes
from .model_paths import say_notes
from .quantize_request import QuantizeRequest

if TYPE_CHECKING:
    from dsconv.runtime.calibration.self_written import Layout  # torch

SUSTAINED = 1.15  # measured with `benchmarks/plan_accuracy.py`
CERTAIN = 0.75  # share of an estimate that surely comes true


@dataclass(frozen=True)
class Machine:
    """free_disk: at `place`, where the output will lie; memory: 0 where it is not known."""

    place: Path
    free_disk: int
    memory: int

    @classmethod
    def at(cls, output: Path) -> Machine:
        return cls(output, free_bytes(output), machine_memory_bytes())


@dataclass(frozen=True)
class TimedStep:
    name: str
    seconds: float


@dataclass(frozen=True)
class Prediction:
    parameters: int
    cost: Cost
    machine: Machine
    steps: tuple[TimedStep, ...]
    problems: tuple[DsconvError, ...]

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "output_bytes": self.cost.output_bytes,
            "scratch_bytes": self.cost.scratch_bytes,
            "free_disk_bytes": self.machine.free_disk,
            "peak_rss_bytes": self.cost.peak_bytes,
            "memory_bytes": self.machine.memory,
            "seconds": self.seconds,
            "fits": not self.problems,
            "reasons": [f"{problem.message}: {problem.hint}" for problem in self.problems],
            "steps": [{"name": step.name, "seconds": step.seconds} for step in self.steps],
        }


def predict(model: str, request: QuantizeRequest, output: Path, threads: int) -> Prediction:
    """Raises what opening the model and planning its quantization raise."""
    texts, target = request.texts(), request.target()
    checkpoint = open_for_planning(model)
    say_notes(checkpoint.notes)
    refuse_special_ids_beyond(checkpoint)
    options = request.resolve(threads, True, checkpoint.decoder.config.tie_word_embeddings)
    workload = workload_of(checkpoint, options, texts, target)
    cost = full_cost(workload)
    machine = Machine.at(output)
    rates = {**measure(workload, output), **_writing_rate(workload)}
    return Prediction(
        workload.checkpoint.parameter_count,
        cost,
        machine,
        tuple(TimedStep(step.name, _seconds(step, rates)) for step in cost.steps),
        tuple(problems_of(cost, machine)),
    )


def refuse_what_cannot_fit(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    output: Path,
    calibration: CalibrationOptions,
    target: BitsTarget | None = None,
) -> None:
    """Fail before any work.

    Raises:
        OutputError: the disk is too small for what will surely be written.
        UnsupportedError: the machine has too little memory.
    """
    cost = full_cost(workload_of(checkpoint, options, calibration, target))
    if target is not None and target.max_kl is not None:
        cost = replace(cost, output_bytes=0)  # known when the bits have been chosen
    for problem in problems_of(cost, Machine.at(output), CERTAIN):
        raise problem


def workload_of(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    calibration: CalibrationOptions,
    target: BitsTarget | None,
) -> Workload:
    refuse_quantized(checkpoint)
    if target is not None:
        refuse_impossible(checkpoint, options, target)
    if options.method != CALIBRATED and target is None:
        return Workload(checkpoint, options)
    from dsconv.convert.forward.torch_ops import forward_dtype

    size = min(calibration.window, checkpoint.decoder.config.max_position_embeddings)
    count = max(1, calibration.tokens // size)
    weights = [source.weight for source in calibration.sources]
    given = shares(count, weights, [count] * len(weights)) if weights else [count]
    own = [source.path is None for source in calibration.sources] or [True]
    written = sum(share for share, mine in zip(given, own, strict=True) if mine)
    windows = Windows(sum(given), size, written)
    return Workload(checkpoint, options, windows, target, forward_dtype().itemsize)


def full_cost(workload: Workload) -> Cost:
    """With the writing of the calibration text."""
    cost = cost_of(workload)
    if not workload.windows.own or not _writes(workload):
        return cost
    return replace(cost, steps=(_writing(workload), *cost.steps))


def _writes(workload: Workload) -> bool:
    from dsconv.runtime.calibration.self_written import MAX_WRITER_BYTES

    return workload.checkpoint.parameter_count * workload.itemsize <= MAX_WRITER_BYTES


def _writing(workload: Workload) -> Step:
    """One step per token of a text, for all texts at once; weights are held, or read every time."""
    from dsconv.convert.forward.batch_generation import SlotCache
    from dsconv.convert.forward.torch_ops import forward_dtype
    from dsconv.runtime.calibration.self_written import MAX_HELD_BYTES

    checkpoint, layout = workload.checkpoint, _layout(workload)
    config = checkpoint.decoder.config
    per_token = SlotCache.bytes_per_token(config, forward_dtype())
    held = checkpoint.parameter_count * workload.itemsize <= MAX_HELD_BYTES
    cache = layout.slots * layout.document_tokens * per_token
    matrices = checkpoint.parameter_count
    if not config.tie_word_embeddings:
        matrices -= config.vocab_size * config.hidden_size
    work = {
        Work.GENERATION: float(layout.slot_tokens),
        Work.LOADING: float(matrices if held else matrices * layout.slot_tokens)
        / workload.options.threads,
    }
    logits = layout.slots * config.vocab_size * 4 * 4
    peak = workload.base_bytes + cache + logits + (matrices * workload.itemsize if held else 0)
    return Step("calibration text", work, peak, "use texts of your own with --calibration FILE")


def _writing_rate(workload: Workload) -> Rates:
    """Steps per second, where the model writes."""
    if not workload.windows.own or not _writes(workload):
        return {}
    from dsconv.runtime.calibration.writing_rate import step_seconds

    seconds = step_seconds(workload.checkpoint, _layout(workload), workload.options.threads)
    return {Work.GENERATION: 1 / max(seconds, 1e-6)}


def _layout(workload: Workload) -> Layout:
    from dsconv.convert.forward.batch_generation import SlotCache
    from dsconv.convert.forward.torch_ops import forward_dtype
    from dsconv.runtime.calibration.self_written import plan_layout

    config, windows = workload.checkpoint.decoder.config, workload.windows
    per_token = SlotCache.bytes_per_token(config, forward_dtype())
    return plan_layout(config, windows.own, windows.size, per_token)


def _seconds(step: Step, rates: Rates) -> float:
    return sum(_needed(kind, amount) / rates[kind] for kind, amount in step.work.items() if amount)


def _needed(kind: Work, amount: float) -> float:
    """A long run does not keep up the rate of a moment: caches, the journal, the disk."""
    return amount if kind is Work.STARTING else SUSTAINED * amount


def problems_of(cost: Cost, machine: Machine, share: float = 1.0) -> list[DsconvError]:
    """What the machine lacks, when only this share of the estimates comes true."""
    found: list[DsconvError] = []
    if cost.output_bytes + share * cost.scratch_bytes > machine.free_disk:
        cures = "choose another disk with -o"
        if cost.scratch_bytes > cost.output_bytes / 4:
            scratch = size_text(cost.scratch_bytes)
            cures += f", or use fewer --calibration-tokens (their files take {scratch})"
        wanted = size_text(cost.output_bytes + cost.scratch_bytes)
        free = size_text(machine.free_disk)
        message = f"needs {wanted} of disk at {machine.place}, {free} are free"
        found.append(OutputError(message, cures))
    worst = max(cost.steps, key=lambda step: step.peak_bytes)
    if machine.memory and share * worst.peak_bytes > machine.memory:
        wanted, there = size_text(worst.peak_bytes), size_text(machine.memory)
        message = f"needs {wanted} of memory ({worst.name}), the machine has {there}"
        found.append(UnsupportedError(message, worst.cure or "use a machine with more memory"))
    return found
