"""What an export for other readers has changed, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.checkpoint.matrix_layout import stored_tensors
from dsconv.convert.families.inventory import Role
from dsconv.quant.labels import label_of

FLOAT_NAMES = {"F16": "float16", "F32": "float32"}
LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def notes_on(
    checkpoint: Checkpoint,
    jobs: Sequence[Job],
    errors: Mapping[str, float],
    why_float: str = "beside zero points readers take one scheme only",
) -> tuple[str, ...]:
    """One sentence per kind of change: which matrices, what they are now, why, what it costs.

    Args:
        errors: parameter -> the most by which its float type moves a weight.
        why_float: of a matrix other than the embedding.
    """
    parted = {job.source for job in jobs if job.parameter.name != job.source}
    found: dict[str, list[Job]] = {}
    for job in jobs:
        old = checkpoint.scheme(job.source)
        if old != job.scheme:
            new = FLOAT_NAMES[job.float_dtype] if job.scheme is None else label_of(job.scheme)
            change = f"{new} instead of {label_of(old)}: {_reason(job, parted, why_float)}"
            found.setdefault(change, []).append(job)
    sentences = []
    for change, members in found.items():
        names = ", ".join(_abridged([job.module for job in members]))
        cost = sum(_added_bytes(checkpoint, job, parted) for job in members)
        error = max(errors.get(job.parameter.name, 0.0) for job in members)
        effect = f"a weight changes by at most {error:.1e}" if error else "no weight changes"
        sentences.append(f"{names}: {change}; {cost:+,} bytes; {effect}")
    return tuple(sentences)


def _reason(job: Job, parted: set[str], why_float: str) -> str:
    if job.parameter.role is Role.EMBEDDING:
        if job.source in parted:
            return "it was shared with the head, which keeps the codes"
        return "readers take no embedding quantized like this"
    if job.scheme is None:
        return why_float
    return "a scheme for the same weights that readers take"


def _added_bytes(checkpoint: Checkpoint, job: Job, parted: set[str]) -> int:
    """The codes of a matrix that was shared are counted as the head's."""
    rows, columns = job.parameter.shape
    old, module = checkpoint.scheme(job.source), job.module
    new = sum(tensor.nbytes for tensor in job.planned())
    if old is None or (job.parameter.role is Role.EMBEDDING and job.source in parted):
        return new
    return new - sum(tensor.nbytes for tensor in stored_tensors(module, (rows, columns), old))


def _abridged(modules: Sequence[str]) -> list[str]:
    """`layers.0.up, layers.2.up` -> `layers.{0,2}.up`."""
    layers: dict[str, list[str]] = {}
    for module in modules:
        number = LAYER.search(module)
        numbers = layers.setdefault(LAYER.sub("{}", module, count=1), [])
        numbers += [number[0]] if number else []
    listed = {name: ",".join(numbers) for name, numbers in layers.items()}
    return [
        name.format(f"{{{numbers}}}" if "," in numbers else numbers)
        for name, numbers in listed.items()
    ]
