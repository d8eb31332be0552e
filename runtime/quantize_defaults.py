"""What the options of `quantize` mean together, with what was left open filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this module for every command
    from dsconv.convert.quantize.options import QuantizeOptions


def quantize_options(
    can_write: bool,
    tied: bool,
    method: str | None,
    calibrates: bool,
    bits: int,
    scheme: str,
    activations: str,
    embedding_bits: int | None,
    head_bits: int | None,
    prefix_correction: float | None,
    max_memory: str,
    **others: Any,
) -> QuantizeOptions:
    """Options for a model that can write its calibration text, and whose head is its embedding.

    calibrates: a calibration text or a target is given; see `default_method`.
    """
    from dsconv.convert.quantize import options as plans

    from .console import parse_size

    method = method or plans.default_method(bits, activations, calibrates, can_write)
    if embedding_bits is None:
        embedding_bits = plans.default_embedding_bits(method, scheme, bits, activations)
        if tied and head_bits is not None and embedding_bits != plans.FLOAT_BITS:
            embedding_bits = head_bits  # one matrix
    if prefix_correction is None:
        prefix_correction = plans.default_prefix_correction(bits)
    return plans.QuantizeOptions(
        bits=bits,
        method=method,
        scheme_name=scheme,
        activations=activations,
        embedding_bits=embedding_bits,
        head_bits=head_bits,
        prefix_correction=prefix_correction,
        max_memory=parse_size(max_memory),
        **others,
    )
