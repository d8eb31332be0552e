"""Choose bits per matrix: measured sensitivities, the options of the scheme, the knapsack.

Matrices of one input (query, key and value; gate and up) get the same bits, because runtimes fuse
them; a tied embedding and head are one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.torch_ops import forward_dtype
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.errors import UsageError
from dsconv.progress import Advance
from dsconv.quant.allocation import Option, allocate, smallest_within
from dsconv.quant.labels import label_of

from .options import CALIBRATED, BitsTarget, QuantizeOptions
from .sensitivity import MatrixUses, Sensitivity, estimated_kl, sensitivities, uses_of
from .target_range import Choices, Group, choices_of

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
    choices = choices_of(checkpoint, options)
    step = max(1, len(windows) // WINDOWS)
    with single_threaded_libraries(), Workers(options.threads) as workers:
        found = sensitivities(checkpoint, windows[::step], forward_dtype(), workers, advance)
        items = [_options(checkpoint, options, group, found, workers) for group in choices.groups]
    choice = _solve(items, target, checkpoint.parameter_count, choices)
    labels = {
        job.module: label_of(group.schemes[index])
        for group, index in zip(choices.groups, choice, strict=True)
        for job in group.jobs
    }
    loss = sum(item[index].loss for item, index in zip(items, choice, strict=True))
    return Allocation(labels, loss)


def _solve(
    items: list[list[Option]], target: BitsTarget, parameters: int, choices: Choices
) -> list[int]:
    """A size can be reached: `refuse_impossible` has seen to it."""
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
    choice = allocate(items, (budget or 0) - choices.kept)
    if choice is None:
        smallest = choices.smallest
        raise UsageError(
            f"the smallest choice of bits has {8 * smallest / parameters:.3f} bits per weight "
            f"({smallest} bytes)",
            "use a larger target",
        )
    return choice


def _options(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    group: Group,
    found: Mapping[str, Sensitivity],
    workers: Workers,
) -> list[Option]:
    """One per scheme: the sums over the matrices of the group."""
    decoder = checkpoint.decoder
    losses = [0.0] * len(group.schemes)
    for job in group.jobs:
        role = job.parameter.role
        tied = decoder.config.tie_word_embeddings
        uses = uses_of(found, job.parameter.name, role, decoder.head_linear.name, tied)
        share = _share(options, role, tied)
        matrix = MatrixUses(checkpoint, job.source, uses)
        estimates = estimated_kl(matrix, group.schemes, workers)
        for index, estimate in enumerate(estimates):
            losses[index] += share * estimate
    return [Option(size, loss) for size, loss in zip(group.sizes, losses, strict=True)]


def _share(options: QuantizeOptions, role: Role, tied: bool) -> float:
    """How much of the estimate for a searched scale is left with the method."""
    if options.method != CALIBRATED or (role is Role.EMBEDDING and not tied):
        return 1.0
    return FEEDBACK_SHARE if role is Role.LINEAR else HEAD_SHARE
