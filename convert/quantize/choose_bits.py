"""Choose bits per matrix: measured sensitivities, the options of the scheme, the knapsack.

Matrices of one input (query, key and value; gate and up) get the same bits, because runtimes fuse
them; a tied embedding and head are one matrix.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.jobs import Job, tensors_of
from dsconv.convert.checkpoint.matrix_layout import stored_tensors
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.torch_ops import forward_dtype
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.errors import UsageError
from dsconv.progress import Advance
from dsconv.quant.allocation import Option, allocate, smallest_within
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.labels import label_of
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import Scheme

from .options import CALIBRATED, SCALE_MIN, BitsTarget, QuantizeOptions
from .plan import plan
from .sensitivity import MatrixUses, Sensitivity, estimated_kl, sensitivities, uses_of

# What is left of the estimated loss when a matrix is rounded with error feedback, and of that of a
# head, whose few loud inputs error feedback serves best (measured on SmolLM2-135M, 4 bits).
FEEDBACK_SHARE = 0.6
HEAD_SHARE = 0.15
WINDOWS = 32  # of the calibration text, for the backward pass: gradients have heavy tails


@dataclass(frozen=True)
class Allocation:
    """labels: per module; estimated_kl: the sum over all matrices, nats per token."""

    labels: Mapping[str, str]
    estimated_kl: float


def choose_bits(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    target: BitsTarget,
    windows: Sequence[Sequence[int]],
    advance: Advance = lambda tokens: None,
) -> Allocation:
    """Give every matrix the scheme with which the target is met at the least estimated loss.

    Holds the model in memory. The same for any number of threads.

    Raises:
        UsageError: no choice reaches the target.
    """
    # Every matrix is to be quantized, so a tied one stays one.
    _, jobs = plan(checkpoint, replace(options, embedding_bits=options.bits, head_bits=None))
    matrices = [job for job in jobs if job.parameter.role is not Role.VECTOR]
    step = max(1, len(windows) // WINDOWS)
    with single_threaded_libraries(), Workers(options.threads) as workers:
        found = sensitivities(checkpoint, windows[::step], forward_dtype(), workers, advance)
        items, groups = [], []
        for _, members in itertools.groupby(matrices, key=lambda job: job.parameter.group):
            group = list(members)
            schemes = _candidates(options, group[0])
            items.append(_options(checkpoint, options, group, schemes, found, workers))
            groups.append((group, schemes))
    kept = sum(
        tensor.nbytes for tensor in tensors_of([j for j in jobs if j.parameter.role is Role.VECTOR])
    )
    choice = _solve(items, target, checkpoint.parameter_count, kept)
    labels = {
        job.module: label_of(schemes[index])
        for (group, schemes), index in zip(groups, choice, strict=True)
        for job in group
    }
    loss = sum(item[index].loss for item, index in zip(items, choice, strict=True))
    return Allocation(labels, loss)


def _solve(items: list[list[Option]], target: BitsTarget, parameters: int, kept: int) -> list[int]:
    smallest = kept + sum(min(option.size for option in item) for item in items)
    if target.max_kl is not None:
        choice = smallest_within(items, target.max_kl)
        if choice is None:
            raise UsageError(
                f"no choice of bits has an estimated KL of {target.max_kl:g}", "allow a larger KL"
            )
        return choice
    budget = target.size
    if target.bits_per_weight is not None:
        budget = int(target.bits_per_weight * parameters / 8)
    choice = allocate(items, (budget or 0) - kept)
    if choice is None:
        raise UsageError(
            f"the smallest choice of bits has {8 * smallest / parameters:.3f} bits per weight "
            f"({smallest} bytes)",
            "use a larger target, or --scheme scale-min, which has 3 bits too",
        )
    return choice


def _candidates(options: QuantizeOptions, job: Job) -> list[Scheme | None]:
    """The schemes that a matrix may get, smallest first."""
    columns = job.parameter.shape[1]
    if options.scheme_name == SCALE_MIN:
        return [*map(ScaleMin, (3, 4, 5, 6)), IntegerScheme(8, 32), None]
    size = options.group_size
    sizes = [size] if size < 0 else [s for s in (2 * size, size, size // 2) if 16 <= s <= 128]
    shapes = [(options.bits, group_size) for group_size in sizes]
    if options.bits == 4:
        shapes.append((8, size))
    elif size > 0:
        shapes = [(8, group_size) for group_size in (128, 64, 32, 16)]
    found: list[Scheme | None] = []
    for bits, group_size in shapes:
        scheme = IntegerScheme(bits, group_size, options.symmetric).for_columns(columns)
        if scheme not in found:
            found.append(scheme)
    return [*found, None]


def _options(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    group: list[Job],
    schemes: list[Scheme | None],
    found: Mapping[str, Sensitivity],
    workers: Workers,
) -> list[Option]:
    """One per scheme: the sums over the matrices of the group."""
    decoder = checkpoint.decoder
    sizes, losses = [0] * len(schemes), [0.0] * len(schemes)
    for job in group:
        role = job.parameter.role
        tied = decoder.config.tie_word_embeddings
        uses = uses_of(found, job.parameter.name, role, decoder.head_linear.name, tied)
        share = _share(options, role, tied)
        matrix = MatrixUses(checkpoint, job.source, uses)
        estimates = estimated_kl(matrix, schemes, workers)
        rows, columns = job.parameter.shape
        for index, (scheme, estimate) in enumerate(zip(schemes, estimates, strict=True)):
            losses[index] += share * estimate
            sizes[index] += (
                2 * job.parameter.size
                if scheme is None
                else sum(t.nbytes for t in stored_tensors(job.module, (rows, columns), scheme))
            )
    return [Option(size, loss) for size, loss in zip(sizes, losses, strict=True)]


def _share(options: QuantizeOptions, role: Role, tied: bool) -> float:
    """How much of the estimate for a searched scale is left with the method."""
    if options.method != CALIBRATED or (role is Role.EMBEDDING and not tied):
        return 1.0
    return FEEDBACK_SHARE if role is Role.LINEAR else HEAD_SHARE
