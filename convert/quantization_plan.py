"""What a quantization run will write: options, one job per parameter, tensors and shards.

The tensors are laid out so that what a runtime may fuse lies side by side: the codes of query, key
and value, then their scales, then their biases; the same for gate and up. A graph can then name
one byte range for the fused matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..quant.packing import packed_row_bytes
from ..quant.rounding import METHODS
from ..quant.scheme import Scheme
from .checkpoint import CONFIG, Checkpoint, module_of
from .compressed_tensors import build_quantization_config
from .families import read_family
from .families.inventory import Parameter, Role, parameters_of
from .json_file import ConfigReader
from .safetensors_file import PlannedTensor

FLOAT_BITS = 16  # "leave it as it is"
MAX_SHARD_BYTES = 5_000_000_000
CALIBRATED = "gptq"


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user chose. `head_bits` None: as `bits`, or as an embedding with shared bytes."""

    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    head_bits: int | None = None
    embedding_bits: int = FLOAT_BITS
    method: str = "search"
    threads: int = 2

    def __post_init__(self) -> None:
        Scheme(self.bits, self.group_size, self.symmetric)
        for name, bits in (("head", self.head_bits), ("embedding", self.embedding_bits)):
            if bits not in (None, 4, 8, FLOAT_BITS):
                raise UsageError(f"{name} bits: {bits} is not supported", "choose 4, 8 or 16")
        methods = (*METHODS, CALIBRATED)
        if self.method not in methods:
            raise UsageError(
                f"method: {self.method!r} is not known", f"choose {', '.join(methods)}"
            )

    def scheme(self, bits: int) -> Scheme | None:
        return None if bits == FLOAT_BITS else Scheme(bits, self.group_size, self.symmetric)


@dataclass(frozen=True)
class Job:
    """One output parameter: where its rows come from and how they are stored."""

    parameter: Parameter
    source: str
    scheme: Scheme | None
    float_dtype: str

    @property
    def module(self) -> str:
        return module_of(self.parameter.name)

    def planned(self) -> list[PlannedTensor]:
        """The tensors of this parameter, codes first; `weight_shape` is kept apart."""
        name, shape = self.parameter.name, self.parameter.shape
        if self.scheme is None:
            return [PlannedTensor(name, self.float_dtype, shape)]
        rows, columns = shape
        groups, bits = self.scheme.groups(columns), self.scheme.bits
        tensors = [
            PlannedTensor(
                f"{self.module}.weight_packed", "I32", (rows, packed_row_bytes(columns, bits) // 4)
            ),
            PlannedTensor(f"{self.module}.weight_scale", "F16", (rows, groups)),
        ]
        if not self.scheme.symmetric:
            words = -(-rows * bits // 32)
            tensors.append(
                PlannedTensor(f"{self.module}.weight_zero_point", "I32", (words, groups))
            )
        return tensors


def plan(checkpoint: Checkpoint, options: QuantizeOptions) -> tuple[dict[str, Any], list[Job]]:
    """Decide every parameter's scheme -> (config.json of the output, jobs in network order).

    A tied matrix is stored once when it is quantized as a whole. When only the head is to be
    quantized the two part: the head gets codes of its own and the embedding stays as it is.
    """
    decoder = checkpoint.decoder
    tied = decoder.config.tie_word_embeddings
    head_bits = options.head_bits
    if head_bits is None:
        shared = tied and options.embedding_bits != FLOAT_BITS
        head_bits = options.embedding_bits if shared else options.bits
    elif tied and options.embedding_bits != FLOAT_BITS and head_bits != options.embedding_bits:
        raise UsageError(
            f"head bits {head_bits} differ from embedding bits {options.embedding_bits}, "
            "but this model shares one matrix between them",
            "give both the same bits, or leave the embedding at 16",
        )
    config = dict(checkpoint.config)
    if tied and options.embedding_bits == FLOAT_BITS and head_bits != FLOAT_BITS:
        config["tie_word_embeddings"] = False
    bits = {
        Role.LINEAR: options.bits,
        Role.EMBEDDING: options.embedding_bits,
        Role.HEAD: head_bits,
        Role.VECTOR: FLOAT_BITS,
    }
    jobs = []
    for parameter in parameters_of(read_family(ConfigReader(config, CONFIG))):
        scheme = options.scheme(bits[parameter.role])
        if scheme is not None:
            scheme = scheme.for_columns(parameter.shape[1])
        in_source = parameter.name in checkpoint.parameters
        source = parameter.name if in_source else f"{decoder.table.name}.weight"
        jobs.append(Job(parameter, source, scheme, checkpoint.float_dtype(source)))
    schemes = {job.module: job.scheme for job in jobs if job.parameter.role is not Role.VECTOR}
    # A tied head is a module too, though it has no tensor of its own.
    schemes.setdefault(decoder.head_linear.name, schemes[decoder.table.name])
    if any(schemes.values()):
        config["quantization_config"] = build_quantization_config(schemes, [decoder.table.name])
    return config, jobs


def tensors_of(jobs: list[Job]) -> list[PlannedTensor]:
    """Everything in a shard, in file order: group by group, same kinds side by side."""
    tensors: list[PlannedTensor] = []
    shapes: list[PlannedTensor] = []
    for group in _groups(jobs):
        columns = [job.planned() for job in group]
        for kind in range(max(map(len, columns))):
            tensors += [planned[kind] for planned in columns if kind < len(planned)]
        shapes += [
            PlannedTensor(f"{job.module}.weight_shape", "I64", (2,)) for job in group if job.scheme
        ]
    return tensors + shapes


def _groups(jobs: list[Job]) -> Iterator[list[Job]]:
    """Jobs of one input side by side, weights before biases."""
    group: list[Job] = []
    for job in jobs:
        if group and job.parameter.group != group[-1].parameter.group:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def shards_of(jobs: list[Job]) -> dict[str, list[Job]]:
    """File name -> jobs; a group is never split."""
    shards: list[list[Job]] = [[]]
    size = 0
    for group in _groups(jobs):
        nbytes = sum(tensor.nbytes for tensor in tensors_of(group))
        if shards[-1] and size + nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1] += group
        size += nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {f"model-{i + 1:05}-of-{count:05}.safetensors": jobs for i, jobs in enumerate(shards)}
