"""Which quantized matrices other readers take, and what the rest becomes.

transformers (5.23, with compressed-tensors 0.20) reads a checkpoint in one of two ways:

- left packed until the first forward pass: any mix of schemes, but no zero points, no embedding;
- unpacked while loading (`dequantize`): all that, but with the scheme of the first config group for
  every matrix, so there may be one scheme only. Others fail, or give other weights in silence.

vLLM (0.33) takes zero points and mixes, but no quantized embedding that has zero points or is tied.

So a checkpoint is given one of these two forms. Matrices get other codes for the same weights where
there are some, and are float otherwise; of the forms that are possible the smallest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dsconv.convert.checkpoint.checkpoint import Checkpoint, module_of
from dsconv.convert.checkpoint.matrix_layout import stored_tensors
from dsconv.convert.families.inventory import Role
from dsconv.errors import UnsupportedError
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.recoding import can_recode
from dsconv.quant.schemes import Scheme

FLOAT_BYTES = 2

# The scheme of a matrix and the length of its rows -> the scheme it gets, None for float.
Form = Callable[[Scheme, int], Scheme | None]


@dataclass(frozen=True)
class StoredMatrix:
    module: str
    shape: tuple[int, int]
    scheme: Scheme | None

    def nbytes(self, scheme: Scheme | None) -> int:
        """Stored with this scheme; a matrix that is float already is left out of account."""
        if self.scheme is None:
            return 0
        if scheme is None:
            return FLOAT_BYTES * self.shape[0] * self.shape[1]
        return sum(tensor.nbytes for tensor in stored_tensors(self.module, self.shape, scheme))


def readable_schemes(checkpoint: Checkpoint) -> dict[str, Scheme | None]:
    """Module -> the scheme with which transformers and vLLM take it, None for float.

    A quantized matrix that embedding and head share parts: the head keeps it.

    Raises:
        UnsupportedError: nothing is quantized, or with scale and minimum.
    """
    decoder = checkpoint.decoder
    table, head = decoder.table.name, decoder.head_linear.name
    matrices = list(_matrices(checkpoint))
    schemes = [matrix.scheme for matrix in matrices if matrix.scheme is not None]
    if not schemes:
        if checkpoint.rounded_before:
            raise UnsupportedError(
                f"{checkpoint.origin}: was quantized by another tool "
                f"({checkpoint.rounded_before[0]}), whose codes are not carried over",
                "run it as it is with that tool's software, or quantize the unquantized model",
            )
        raise UnsupportedError(
            f"{checkpoint.origin}: is not quantized",
            "run dsconv quantize first; transformers and vLLM read an unquantized folder as it is",
        )
    if any(scheme.has_minima for scheme in schemes):
        raise UnsupportedError(
            f"{checkpoint.origin}: compressed-tensors has no scale and minimum",
            "use --format gguf or native, or quantize with --scheme integer",
        )
    separate = not decoder.config.tie_word_embeddings
    embedding = next(matrix for matrix in matrices if matrix.module == table)
    if embedding.scheme is not None and not separate:
        matrices.append(StoredMatrix(head, embedding.shape, embedding.scheme))
    choices = []
    for form in _forms(schemes):
        choice = {m.module: form(m.scheme, m.shape[1]) if m.scheme else None for m in matrices}
        if not (separate and _takes_embedding(choice, embedding)):
            choice[table] = None
        choices.append(choice)
    return min(choices, key=lambda choice: sum(m.nbytes(choice[m.module]) for m in matrices))


def _matrices(checkpoint: Checkpoint) -> Iterator[StoredMatrix]:
    for name, parameter in checkpoint.parameters.items():
        if parameter.role is not Role.VECTOR:
            rows, columns = parameter.shape
            yield StoredMatrix(module_of(name), (rows, columns), checkpoint.scheme(name))


def _forms(schemes: list[Scheme]) -> list[Form]:
    """Left packed; or one scheme for all, that of some matrix or the same with zero points."""
    integer = sorted(
        {scheme for scheme in schemes if scheme.is_plain},
        key=lambda scheme: (scheme.bits, scheme.group_size, scheme.symmetric),
    )
    common = [IntegerScheme(scheme.bits, scheme.group_size, False) for scheme in integer]
    return [_left_packed, *map(_unpacked_as, common)]


def _left_packed(scheme: Scheme, columns: int) -> Scheme | None:
    if not scheme.has_zero_points:
        return scheme
    without_zeros = IntegerScheme(8, scheme.group_size)
    return without_zeros if can_recode(scheme, without_zeros, columns) else None


def _unpacked_as(common: IntegerScheme) -> Form:
    def form(scheme: Scheme, columns: int) -> Scheme | None:
        return common if can_recode(scheme, common, columns) else None

    return form


def _takes_embedding(choice: Mapping[str, Scheme | None], embedding: StoredMatrix) -> bool:
    """Only as it is, and only where everything has its scheme: then transformers may unpack all."""
    scheme = embedding.scheme
    kinds = {kind for kind in choice.values() if kind is not None}
    return kinds == {scheme} and scheme is not None and scheme.is_plain and scheme.symmetric
