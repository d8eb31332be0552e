"""How the cost of a run is put: kinds of work, steps, the workload; and the steps that several
ways of quantizing share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.jobs import Job, chunks_of
from dsconv.convert.families.inventory import Role

from .options import CALIBRATED, BitsTarget, QuantizeOptions
from .rounding import BLOCK_WEIGHTS

# Resident after the imports (Linux x86-64, Python 3.12): without and with torch. The second
# includes a first matrix product and the heaps of a few threads.
BASE_BYTES = 82 * 2**20
TORCH_BASE_BYTES = 360 * 2**20
TOKENIZER_SHARE = 20  # resident bytes of a tokenizer per byte of its file
# Per weight in flight: as stored, as float32, its mask of finite ones, its code, twice for joining.
CHUNK_BYTES_PER_WEIGHT = 9
BLOCK_BYTES_PER_WEIGHT = 64  # temporaries of the search, float32 of several candidates


class Work(Enum):
    """Kinds of work that a machine does at a rate of its own."""

    FORWARD = "operations of decoder layers, in the type of the forward pass"
    GENERATION = "steps by a token of all texts that the model writes at once"
    MOMENTS = "operations of products of second moments, on one thread"
    PRODUCT = "operations of float32 matrix products"
    FACTORIZATION = "columns cubed, on one thread"
    FEEDBACK = "weights rounded with error feedback"
    ROUNDING = "weights rounded by themselves"
    LOADING = "weights brought into the type of the forward pass, on one thread"
    READING = "bytes read and hashed, on one thread"
    WRITING = "bytes written and flushed to the disk"
    STARTING = "processes that have imported what the run needs"


@dataclass(frozen=True)
class Step:
    """A part of the run. peak_bytes: resident while it works; cure: what would need less."""

    name: str
    work: Mapping[Work, float]
    peak_bytes: int
    cure: str


@dataclass(frozen=True)
class Windows:
    """Calibration text: windows of `size` tokens, of which the model writes `own` itself."""

    count: int = 0
    size: int = 0
    own: int = 0

    @property
    def tokens(self) -> int:
        return self.count * self.size


@dataclass(frozen=True)
class Workload:
    """A run: `itemsize` is that of the forward's type, 0 where there is no forward."""

    checkpoint: Checkpoint
    options: QuantizeOptions
    windows: Windows = Windows()
    target: BitsTarget | None = None
    itemsize: int = 0

    @property
    def base_bytes(self) -> int:
        """Resident before the first weight is read."""
        if not self.itemsize:
            return BASE_BYTES
        tokenizer = len(self.checkpoint.side_files.get("tokenizer.json", b""))
        return TORCH_BASE_BYTES + TOKENIZER_SHARE * tokenizer

    @property
    def calibrates(self) -> bool:
        return self.options.method == CALIBRATED

    @property
    def streams(self) -> int:
        """Of activations: the quantized model's and, to correct for it, the original's."""
        return 2 if self.options.prefix_correction > 0 else 1


@dataclass(frozen=True)
class Cost:
    """output_bytes: the weights; scratch_bytes: beside them on the disk, at the worst moment."""

    output_bytes: int
    scratch_bytes: int
    steps: tuple[Step, ...]

    @property
    def peak_bytes(self) -> int:
        return max(step.peak_bytes for step in self.steps)


def rounding_step(workload: Workload, matrices: list[Job], name: str) -> Step:
    """Matrices rounded in chunks of rows, each by itself."""
    threads = workload.options.threads
    in_flight = (threads + 2) * chunk_weights(matrices) * CHUNK_BYTES_PER_WEIGHT
    peak = workload.base_bytes + in_flight + threads * BLOCK_WEIGHTS * BLOCK_BYTES_PER_WEIGHT
    weights = float(sum(job.parameter.size for job in matrices))
    return Step(name, {Work.ROUNDING: weights}, peak, "use fewer --threads")


def chunk_weights(jobs: list[Job]) -> int:
    """Of the largest chunk of rows."""
    largest = 0
    for job in jobs:
        start, stop = next(chunks_of(job.parameter), (0, 0))
        width = job.parameter.size // max(1, job.parameter.shape[0])
        largest = max(largest, (stop - start) * width)
    return largest


def forward_operations(workload: Workload, tokens: int) -> float:
    """Of the decoder's layers over windows of text; attention sees half of its window."""
    config = workload.checkpoint.decoder.config
    sizes = sum(
        parameter.size
        for parameter in workload.checkpoint.parameters.values()
        if parameter.role is Role.LINEAR
    )
    width = config.num_attention_heads * config.head_dim
    attention = config.num_hidden_layers * width * workload.windows.size
    return 2.0 * tokens * (sizes + attention)
