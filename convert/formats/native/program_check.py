"""Does a program fit the tensors of its file? Nothing of it is run before this says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsconv.errors import InputError

from .linear_layout import LinearLayout
from .steps import (
    AttentionStep,
    EmbeddingStep,
    HeadStep,
    LinearStep,
    NormStep,
    NormUse,
    Program,
    ProgramStep,
)

MAX_GROUP = 256  # query heads per key-value head


@dataclass(frozen=True)
class ProgramShapes:
    """What a file holds: matrices, and the lengths of its vectors."""

    matrices: Mapping[str, LinearLayout]
    vectors: Mapping[str, int]


def check_program(program: Program, shapes: ProgramShapes, where: str) -> None:
    """Raises InputError unless every step fits its buffers and tensors, and all are used."""
    _Checker(program, shapes, where).run()


class _Checker:
    def __init__(self, program: Program, shapes: ProgramShapes, where: str) -> None:
        self._program = program
        self._shapes = shapes
        self._where = where
        self._step = -1
        self._used: set[str] = set()
        self._touched: set[int] = set()
        self._written: set[int] = set()  # buffers that hold something
        self._layers = 0
        self._rows = 0  # of the embedding

    def run(self) -> None:
        steps = self._program.steps
        for self._step, step in enumerate(steps):
            self._check(step)
        self._require(isinstance(steps[0], EmbeddingStep), "the first step is no embedding")
        self._require(isinstance(steps[-1], HeadStep), "the last step is no head")
        heads = sum(isinstance(step, HeadStep) for step in steps)
        embeddings = sum(isinstance(step, EmbeddingStep) for step in steps)
        self._require(heads == embeddings == 1, f"{embeddings} embeddings and {heads} heads")
        unused = {*self._shapes.matrices, *self._shapes.vectors} - self._used
        self._require(not unused, f"tensor {min(unused, default='')!r} is not used")
        idle = set(range(len(self._program.buffers))) - self._touched
        self._require(not idle, f"buffer {min(idle, default=-1)} is not used")

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise InputError(
                f"{self._where}: program, step {self._step}: {problem}", "export the model again"
            )

    # --- what steps refer to ----------------------------------------------------------------

    def _width(self, buffer: int) -> int:
        count = len(self._program.buffers)
        self._require(buffer < count, f"buffer {buffer} of {count}")
        self._touched.add(buffer)
        return self._program.buffers[buffer]

    def _reads(self, buffer: int) -> int:
        """-> the width of a buffer that must hold something."""
        width = self._width(buffer)
        self._require(buffer in self._written, f"buffer {buffer} is read before it is written")
        return width

    def _writes(self, buffer: int, width: int, what: str) -> None:
        found = self._width(buffer)
        self._require(found == width, f"{what}: {width} values for a buffer of {found}")
        self._written.add(buffer)

    def _matrix(self, name: str, columns: int) -> int:
        """-> rows of a matrix that takes `columns` values."""
        layout = self._shapes.matrices.get(name)
        if layout is None:
            self._require(False, f"matrix {name!r} is not in the file")
            raise AssertionError
        self._require(
            layout.cols == columns, f"matrix {name!r} takes {layout.cols} values, given {columns}"
        )
        self._used.add(name)
        return layout.rows

    def _vector(self, name: str, length: int) -> None:
        found = self._shapes.vectors.get(name)
        self._require(found is not None, f"vector {name!r} is not in the file")
        self._require(found == length, f"vector {name!r} has {found} values, needed {length}")
        self._used.add(name)

    def _norm(self, norm: NormUse, width: int) -> None:
        self._require(width % norm.heads == 0, f"{norm.gain!r}: {norm.heads} heads of {width}")
        self._vector(norm.gain, width // norm.heads)

    # --- steps ------------------------------------------------------------------------------

    def _check(self, step: ProgramStep) -> None:
        if isinstance(step, EmbeddingStep):
            self._rows = self._matrix(step.weight, self._width(step.output))
            self._written.add(step.output)
        elif isinstance(step, NormStep):
            self._norm(step.norm, self._reads(step.buffer))
        elif isinstance(step, LinearStep):
            self._check_linear(step)
        elif isinstance(step, AttentionStep):
            self._check_attention(step)
        else:
            self._check_head(step)

    def _check_linear(self, step: LinearStep) -> None:
        width = self._reads(step.input)
        taken = [step.input]
        if step.norm is not None and step.normed is not None:
            self._norm(step.norm, width)
            self._writes(step.normed, width, "norm")
            taken.append(step.normed)
        rows = []
        for matrix in step.matrices:
            rows.append(self._matrix(matrix.weight, width))
            if matrix.bias is not None:
                self._vector(matrix.bias, rows[-1])
            if step.combine == "add":
                self._reads(matrix.output)
            self._writes(matrix.output, rows[-1], matrix.weight)
            taken.append(matrix.output)
        self._require(len(set(taken)) == len(taken), f"buffers {taken} overlap")
        if step.combine == "silu_multiply":
            self._require(len(rows) == 2 and rows[0] == rows[1], f"gate and up have {rows} rows")

    def _check_attention(self, step: AttentionStep) -> None:
        self._require(
            step.heads % step.kv_heads == 0 and step.heads // step.kv_heads <= MAX_GROUP,
            f"{step.heads} heads over {step.kv_heads}",
        )
        self._require(step.head_dim % 2 == 0, f"heads of {step.head_dim}")
        self._require(step.layer == self._layers, f"layer {step.layer} after {self._layers - 1}")
        self._layers += 1
        width, kv_width = step.heads * step.head_dim, step.kv_heads * step.head_dim
        for buffer, wanted in ((step.query, width), (step.key, kv_width), (step.value, kv_width)):
            found = self._reads(buffer)
            self._require(found == wanted, f"a buffer of {found}, the heads take {wanted}")
        self._writes(step.output, width, "attention")
        places = [step.query, step.key, step.value, step.output]
        self._require(len(set(places)) == len(places), f"buffers {places} overlap")
        self._vector(step.frequencies, step.head_dim // 2)
        if step.key_bias is not None:
            self._vector(step.key_bias, kv_width)

    def _check_head(self, step: HeadStep) -> None:
        width = self._reads(step.input)
        self._norm(step.norm, width)
        self._writes(step.normed, width, "norm")
        self._require(step.input != step.normed, "buffers overlap")
        rows = self._matrix(step.weight, width)
        self._require(rows == self._rows, f"{rows} logits, an embedding of {self._rows} tokens")
