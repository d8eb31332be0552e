"""What calibration costs: the counts follow `forward_pass.py` and `calibrate.py`.

Every matrix is multiplied once per stream: inputs that are expensive to compute are stored when
they are seen first, the others follow from the residual by a norm. Weights of the matrices that a
value passes on its way are held until all windows have passed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dsconv.convert.checkpoint.jobs import CHUNK_WEIGHTS as ROUNDED_AT_A_TIME
from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.torch_ops import CHUNK_WEIGHTS
from dsconv.convert.quantize.calibration.head_moments import WINDOWS as HEAD_WINDOWS
from dsconv.convert.quantize.calibration.memory_budget import (
    memory_for_activations,
    memory_for_moments,
    rows_at_a_time,
)
from dsconv.convert.quantize.calibration.moments import (
    SQUARES_KEPT,
    SQUARES_PASSING,
    TILE,
    diagonal_blocks,
)
from dsconv.quant.gptq import COLUMNS_AT_A_TIME

from .choose_bits import WINDOWS as SENSITIVITY_WINDOWS
from .cost_model import Step, Work, Workload, forward_operations, rounding_step
from .sensitivity import SAMPLED_ROWS
from .tune import TOP_TOKENS

FLOAT32 = 4
# Squares alive per block while one stream is calibrated: H and U.
SQUARES_KEPT_ALONE = 2
# Row slices [rows_at_a_time, columns] alive in one thread while it rounds, in float32: weights,
# target, reordered weights, rounded ones twice, differences, codes and what NumPy copies.
SLICES = 10
# Resident bytes per byte of a stored window: the heap does not give everything back at once
# (measured on SmolLM2-135M with 4096 and 33280 tokens).
HEAP = 1.5
BACKWARD = 3  # a backward pass costs two forward passes more
CANDIDATES = 6  # schemes that a matrix may get
LESS_MEMORY = "use a smaller --max-memory or fewer --calibration-tokens, or leave out --method gptq"


@dataclass(frozen=True)
class Group:
    """Matrices of one input that are to be quantized: their rows, and the blocks of its moments."""

    columns: int
    rows: int
    widths: tuple[int, ...]

    @property
    def squares(self) -> int:
        """Numbers in one set of blocks."""
        return sum(width**2 for width in self.widths)


def groups_of(workload: Workload, jobs: Sequence[Job]) -> list[Group]:
    config = workload.checkpoint.decoder.config
    limit = memory_for_moments(workload.options.max_memory, config)
    found = []
    for _, members in itertools.groupby(jobs, key=lambda job: job.parameter.group):
        group = [job for job in members if job.parameter.role in (Role.LINEAR, Role.HEAD)]
        schemes = [job.scheme for job in group if job.scheme is not None]
        if not schemes:
            continue
        columns = group[0].parameter.shape[1]
        unit = max(scheme.undivided(columns) for scheme in schemes)
        blocks = diagonal_blocks(columns, unit, limit)
        rows = sum(job.parameter.shape[0] for job in group if job.scheme is not None)
        found.append(Group(columns, rows, tuple(stop - start for start, stop in blocks)))
    return found


def calibration_steps(workload: Workload, jobs: Sequence[Job]) -> list[Step]:
    steps = []
    tables = [job for job in jobs if job.scheme and job.parameter.role is Role.EMBEDDING]
    held = workload.base_bytes + _stored_in_memory(workload)
    if tables and workload.checkpoint.decoder.config.tie_word_embeddings:
        steps.append(_tied_table(workload, tables[0], held))
    elif tables:
        steps.append(rounding_step(workload, tables, "embedding"))
    groups = groups_of(workload, jobs)
    return [
        *steps,
        _forward(workload, groups, held),
        _moments(workload, groups, held),
        _factors(workload, groups, held),
        _rounding(workload, groups, held),
    ]


def _tied_table(workload: Workload, job: Job, held: int) -> Step:
    """A matrix that is the head too is rounded on the head's inputs, from a pass of its own."""
    count, (rows, columns) = workload.windows.count, job.parameter.shape
    windows = len(range(0, count, max(1, count // HEAD_WINDOWS)))
    tokens = windows * workload.windows.size
    work = {
        Work.FORWARD: forward_operations(workload, tokens),
        Work.LOADING: float(_layer_weights(workload)),
        Work.MOMENTS: 2.0 * tokens * columns**2,
        Work.FACTORIZATION: float(columns**3),
        Work.FEEDBACK: float(rows * columns),
        Work.PRODUCT: float(rows * columns**2),
    }
    squares = FLOAT32 * (SQUARES_KEPT_ALONE + SQUARES_PASSING) * columns**2
    slices = SLICES * FLOAT32 * ROUNDED_AT_A_TIME * workload.options.threads
    peak = held + max(squares + _weights_bytes(workload) + _window_bytes(workload), slices)
    return Step("embedding", work, peak, LESS_MEMORY)


def _layer_weights(workload: Workload) -> int:
    parameters = workload.checkpoint.parameters.values()
    return sum(parameter.size for parameter in parameters if parameter.role is Role.LINEAR)


def _forward(workload: Workload, groups: Sequence[Group], held: int) -> Step:
    operations = workload.streams * forward_operations(workload, workload.windows.tokens)
    loaded = float(workload.streams * _layer_weights(workload))
    work = {Work.FORWARD: operations, Work.LOADING: loaded}
    sums = FLOAT32 * workload.streams * max((group.squares for group in groups), default=0)
    peak = max(held + sums + _weights_bytes(workload) + _window_bytes(workload), _table(workload))
    return Step("forward pass", work, peak, LESS_MEMORY)


def _moments(workload: Workload, groups: Sequence[Group], held: int) -> Step:
    """H needs its upper triangle only, in tiles; D is whole. A tile is work for one thread."""
    total, widest = 0.0, 0
    for group in groups:
        tiles = sum(-(-width // TILE) for width in group.widths)
        per_token = sum(width**2 + width * min(width, TILE) for width in group.widths)
        per_token += 2 * group.squares * (workload.streams - 1)
        total += workload.windows.tokens * per_token / min(workload.options.threads, tiles)
        widest = max(widest, FLOAT32 * workload.streams * group.squares)
    return Step("second moments", {Work.MOMENTS: total}, held + widest, LESS_MEMORY)


def _factors(workload: Workload, groups: Sequence[Group], held: int) -> Step:
    cubes = float(sum(width**3 for group in groups for width in group.widths))
    peak = max(
        (
            FLOAT32 * (_kept(workload) * group.squares + SQUARES_PASSING * max(group.widths) ** 2)
            for group in groups
        ),
        default=0,
    )
    return Step("factorization", {Work.FACTORIZATION: cubes}, held + peak, LESS_MEMORY)


def _rounding(workload: Workload, groups: Sequence[Group], held: int) -> Step:
    """Error feedback; the errors of outputs on one window; the correction of the prefix."""
    weights = float(sum(group.rows * group.columns for group in groups))
    feedback = sum(
        group.rows * max(0, width - COLUMNS_AT_A_TIME) * width
        for group in groups
        for width in group.widths
    )
    # Weights times D, times U transposed, times U.
    moved = 3 * 2.0 * sum(group.rows * group.squares for group in groups) * (workload.streams - 1)
    checks = 3 * 2.0 * workload.windows.size * weights
    slices = SLICES * FLOAT32 * workload.options.threads
    peak = max(
        (
            FLOAT32 * _kept(workload) * group.squares
            + slices * rows_at_a_time(group.columns) * group.columns
            for group in groups
        ),
        default=0,
    )
    work = {Work.FEEDBACK: weights, Work.PRODUCT: feedback + moved + checks}
    return Step("rounding", work, held + peak, "use fewer --threads or a smaller --max-memory")


def sensitivity_step(workload: Workload, jobs: Sequence[Job]) -> Step:
    """The whole model in memory, one window per thread with all that its backward pass needs."""
    count = workload.windows.count
    windows = len(range(0, count, max(1, count // SENSITIVITY_WINDOWS)))
    tokens = windows * workload.windows.size
    matrices = [job for job in jobs if job.parameter.role is not Role.VECTOR]
    sampled = sum(
        min(SAMPLED_ROWS, job.parameter.shape[0]) * job.parameter.shape[1] for job in matrices
    )
    parameters = workload.checkpoint.parameter_count
    work = {
        Work.FORWARD: BACKWARD * _operations_with_head(workload, tokens),
        Work.LOADING: float(parameters),
        Work.ROUNDING: float(CANDIDATES * sampled),
    }
    peak = workload.base_bytes + parameters * workload.itemsize
    peak += workload.options.threads * _backward_bytes(workload)
    cure = "leave out --target-bpw, --target-size and --max-kl: they hold the whole model in memory"
    return Step("sensitivities", work, peak, cure)


def tuning_step(workload: Workload) -> Step:
    """The whole model and, per thread, its gradient; what the original says to every window."""
    tokens, threads = workload.windows.tokens, workload.options.threads
    epochs, parameters = workload.options.tuning_epochs, workload.checkpoint.parameter_count
    operations = _operations_with_head(workload, tokens)
    work = {
        Work.FORWARD: (1 + BACKWARD * epochs) * operations,
        # Weights from codes for every step, and gradients of the units for every window.
        Work.LOADING: 2.0 * epochs * workload.windows.count * parameters / threads,
    }
    peak = workload.base_bytes + parameters * (1 + (1 + threads) * workload.itemsize)
    peak += threads * _backward_bytes(workload) + tokens * TOP_TOKENS * (FLOAT32 + 8)
    return Step("tuning", work, peak, "leave out --tuning-epochs: they hold the model in memory")


def _operations_with_head(workload: Workload, tokens: int) -> float:
    config = workload.checkpoint.decoder.config
    return forward_operations(workload, tokens) + 2.0 * tokens * (
        config.vocab_size * config.hidden_size
    )


def _backward_bytes(workload: Workload) -> int:
    """What a window keeps for its backward pass, its logits in several forms included."""
    config = workload.checkpoint.decoder.config
    width = config.num_attention_heads * config.head_dim
    features = 12 * config.hidden_size + 8 * config.intermediate_size + 8 * width
    layers = config.num_hidden_layers * features * workload.itemsize
    logits = config.vocab_size * (4 * FLOAT32 + workload.itemsize)
    return workload.windows.size * (layers + logits)


def scratch_bytes(workload: Workload) -> int:
    """The kept residual, twice while a newer one replaces it, and activations beyond memory."""
    residual, widest = _residual_bytes(workload), _widest_bytes(workload)
    share = _share(workload)
    # A file of activations shrinks only when it is given up: a residual in a file is there twice.
    spilled = max(0, residual + widest - share) + max(0, residual - share)
    return 2 * residual + spilled


def _share(workload: Workload) -> int:
    return memory_for_activations(workload.options.max_memory)


def _stored_in_memory(workload: Workload) -> int:
    stored = _residual_bytes(workload) + _widest_bytes(workload)
    return int(HEAP * min(_share(workload), stored))


def _residual_bytes(workload: Workload) -> int:
    return _activation_bytes(workload, workload.checkpoint.decoder.config.hidden_size)


def _widest_bytes(workload: Workload) -> int:
    """Of the widest input that is stored: that of the down or of the output projection."""
    config = workload.checkpoint.decoder.config
    width = max(config.intermediate_size, config.num_attention_heads * config.head_dim)
    return _activation_bytes(workload, width)


def _activation_bytes(workload: Workload, features: int) -> int:
    return workload.windows.tokens * features * workload.itemsize * workload.streams


def _kept(workload: Workload) -> int:
    return SQUARES_KEPT if workload.streams > 1 else SQUARES_KEPT_ALONE


def _weights_bytes(workload: Workload) -> int:
    """Gate and up, the largest held together, and the piece that is being read."""
    config = workload.checkpoint.decoder.config
    matrix = config.intermediate_size * config.hidden_size
    width = config.num_attention_heads * config.head_dim
    together = max(2 * matrix, 3 * width * config.hidden_size)
    return together * workload.itemsize + min(matrix, CHUNK_WEIGHTS) * (FLOAT32 + 2)


def _window_bytes(workload: Workload) -> int:
    """Temporaries of one window per thread, and the batch of which moments are taken."""
    config, threads = workload.checkpoint.decoder.config, workload.options.threads
    features = 4 * config.intermediate_size + 8 * config.hidden_size
    return (threads + 2) * workload.windows.size * features * workload.itemsize


def _table(workload: Workload) -> int:
    """The rows of the tokens that occur: about one in four is new."""
    config = workload.checkpoint.decoder.config
    rows = min(config.vocab_size, workload.windows.tokens // 4)
    bytes_per_number = 2 * FLOAT32 + workload.streams * workload.itemsize
    return workload.base_bytes + rows * config.hidden_size * bytes_per_number
