"""Which sizes a choice of bits per matrix can reach: arithmetic on shapes, nothing is read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.jobs import Job, tensors_of
from dsconv.convert.checkpoint.matrix_layout import stored_tensors
from dsconv.convert.families.inventory import Role
from dsconv.errors import UsageError
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import Scheme

from .options import SCALE_MIN, BitsTarget, QuantizeOptions
from .plan import plan

WIDER = (
    ("--bits 4", {"bits": 4}),
    ("--group-size 128", {"group_size": 128}),
    ("--group-size -1", {"group_size": -1}),
    ("--scheme scale-min", {"scheme_name": SCALE_MIN, "group_size": 32, "symmetric": True}),
)


@dataclass(frozen=True)
class Group:
    """Matrices that get the same scheme, and the schemes to choose from, smallest first."""

    jobs: tuple[Job, ...]
    schemes: tuple[Scheme | None, ...]

    @property
    def sizes(self) -> list[int]:
        """Bytes per scheme."""
        return [sum(_size(job, scheme) for job in self.jobs) for scheme in self.schemes]


def _size(job: Job, scheme: Scheme | None) -> int:
    if scheme is None:
        return 2 * job.parameter.size
    rows, columns = job.parameter.shape
    return sum(tensor.nbytes for tensor in stored_tensors(job.module, (rows, columns), scheme))


@dataclass(frozen=True)
class Choices:
    """Everything that a target chooses among; kept: bytes of what stays as it is."""

    groups: tuple[Group, ...]
    kept: int

    @property
    def smallest(self) -> int:
        return self.kept + sum(min(group.sizes) for group in self.groups)

    @property
    def largest(self) -> int:
        return self.kept + sum(max(group.sizes) for group in self.groups)


def choices_of(checkpoint: Checkpoint, options: QuantizeOptions) -> Choices:
    # Every matrix is to be quantized, so a tied one stays one.
    every = replace(options, embedding_bits=options.bits, head_bits=None)
    _, jobs = plan(checkpoint, every)
    matrices = [job for job in jobs if job.parameter.role is not Role.VECTOR]
    groups = []
    for _, members in itertools.groupby(matrices, key=lambda job: job.parameter.group):
        group = tuple(members)
        groups.append(Group(group, tuple(candidates(options, group[0]))))
    vectors = [job for job in jobs if job.parameter.role is Role.VECTOR]
    return Choices(tuple(groups), sum(tensor.nbytes for tensor in tensors_of(vectors)))


def candidates(options: QuantizeOptions, job: Job) -> Sequence[Scheme | None]:
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


def refuse_impossible(checkpoint: Checkpoint, options: QuantizeOptions, target: BitsTarget) -> None:
    """Raises UsageError: no choice of bits is as small, or none is as large."""
    if target.max_kl is not None:  # as small as one likes with enough bits
        return
    parameters = checkpoint.parameter_count
    wanted = target.size
    if target.bits_per_weight is not None:
        wanted = int(target.bits_per_weight * parameters / 8)
    assert wanted is not None
    choices = choices_of(checkpoint, options)
    smallest, largest = choices.smallest, choices.largest
    if smallest <= wanted < largest:
        return
    low, high = 8 * smallest / parameters, 8 * largest / parameters
    span = f"{low:.3f} to {high:.3f} bits per weight ({smallest:,} to {largest:,} bytes)"
    given = f"{wanted:,} bytes"
    if target.bits_per_weight is not None:
        given = f"{target.bits_per_weight:g} bits per weight"
    if wanted >= largest:
        raise UsageError(
            f"target of {given}: the choices for this model have {span}, and the largest leaves "
            "every matrix in float",
            "use a smaller target, or leave it out",
        )
    raise UsageError(
        f"target of {given}: the choices for this model have {span}",
        f"use a larger target{_what_widens(checkpoint, options, wanted)}",
    )


def _what_widens(checkpoint: Checkpoint, options: QuantizeOptions, wanted: int) -> str:
    """The one option that reaches the target, else the one that comes nearest."""
    best, cure = choices_of(checkpoint, options).smallest, ""
    for option, change in WIDER:
        try:
            other = choices_of(checkpoint, replace(options, **change)).smallest
        except UsageError:
            continue
        if other < best:
            best = other
            bits = 8 * other / checkpoint.parameter_count
            cure = f", or {option}, which begins at {bits:.3f} bits per weight ({other:,} bytes)"
            if other <= wanted:
                break
    return cure
