"""What a quantization run will cost, as plain arithmetic: bytes on disk, memory, amounts of work.

Nothing is measured here and no weight is read: shapes and options decide. How fast a machine does
each kind of work is another matter (`convert/quantize/work_rates.py`).
"""

from __future__ import annotations

from dsconv.convert.checkpoint.jobs import Job, tensors_of

from .cost_model import (
    CHUNK_BYTES_PER_WEIGHT,
    Cost,
    Step,
    Work,
    Workload,
    chunk_weights,
    rounding_step,
)
from .plan import plan

HASHED_TIMES = 2
STARTS = 1.4  # a run of a model with next to no weights, over its imports alone


def cost_of(workload: Workload) -> Cost:
    """Everything but the writing of the calibration text.

    Raises:
        UsageError: options that contradict each other for this checkpoint.
    """
    _, jobs = plan(workload.checkpoint, workload.options)
    steps = [_copy(workload, jobs)]
    scratch = 0
    if workload.target is not None:
        from .calibration_cost import sensitivity_step  # torch

        steps.append(sensitivity_step(workload, jobs))
    if workload.calibrates:
        from .calibration_cost import calibration_steps, scratch_bytes, tuning_step  # torch

        steps += calibration_steps(workload, jobs)
        scratch = scratch_bytes(workload)
        if workload.options.tuning_epochs:
            steps.append(tuning_step(workload))
    else:
        matrices = [job for job in jobs if job.scheme is not None]
        steps.append(rounding_step(workload, matrices, "rounding"))
    output = _output_bytes(workload, jobs)
    steps += [_sealing(workload, output), _starting(workload)]
    return Cost(output, scratch, tuple(steps))


def _output_bytes(workload: Workload, jobs: list[Job]) -> int:
    """Exact without a target; with one on the KL nobody knows before: as if all had `bits`."""
    target = workload.target
    if target is not None and target.size is not None:
        return target.size
    if target is not None and target.bits_per_weight is not None:
        return int(target.bits_per_weight * workload.checkpoint.parameter_count / 8)
    return sum(tensor.nbytes for tensor in tensors_of(jobs))


def _sealing(workload: Workload, output: int) -> Step:
    """What was written reaches the disk, and is hashed twice: by file and by tensor."""
    work = {Work.WRITING: float(output), Work.READING: float(HASHED_TIMES * output)}
    return Step("writing and hashing", work, workload.base_bytes, "")


def _starting(workload: Workload) -> Step:
    """Imports; and a command line, the journal and small files, which take their part of it."""
    return Step("start and end", {Work.STARTING: STARTS}, workload.base_bytes, "")


def _copy(workload: Workload, jobs: list[Job]) -> Step:
    """What stays as it is; and the source's files are hashed for the manifest meanwhile."""
    kept = [job for job in jobs if job.scheme is None]
    source = workload.checkpoint.source
    read = sum(source.nbytes(name) for name in {job.source for job in jobs})
    work = {
        Work.LOADING: float(sum(job.parameter.size for job in kept)),
        Work.READING: read / workload.options.threads,  # a thread of its own, beside the others
    }
    peak = workload.base_bytes + chunk_weights(kept) * CHUNK_BYTES_PER_WEIGHT
    return Step("copy and hash", work, peak, "")
