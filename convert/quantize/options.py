"""What was chosen of a quantization: options that are checked, and what they are by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsconv.convert.families.inventory import Role
from dsconv.errors import UsageError, choose
from dsconv.quant.gptq import DAMPING
from dsconv.quant.int8_rows import Int8Rows
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import METHODS, Scheme

FLOAT_BITS = 16  # "leave it as it is"
CALIBRATED = "gptq"
INTEGER, SCALE_MIN = "integer", "scale-min"
FLOAT_ACTIVATIONS, INT8_ACTIVATIONS = "float", "int8"
PREFIX_CORRECTION = 0.5  # of the change that earlier layers have made to the inputs
MAX_MEMORY = 2 * 2**30  # bytes of second moments and activations
MIN_MEMORY = 2**28
SCHEME_BITS = {INTEGER: (4, 8), SCALE_MIN: (3, 4, 5, 6, 8)}


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user chose. `head_bits` None: as `bits`, or as an embedding with shared bytes.

    activations: what layers multiply their weights by; int8 makes the weights int8 per row.
    allocation: module -> label of its scheme (`quant/labels.py`), where matrices differ.
    """

    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    head_bits: int | None = None
    embedding_bits: int = FLOAT_BITS
    method: str = "search"
    threads: int = 2
    scheme_name: str = INTEGER
    activations: str = FLOAT_ACTIVATIONS
    prefix_correction: float = PREFIX_CORRECTION
    damping: float = DAMPING
    max_memory: int = MAX_MEMORY
    tuning_epochs: int = 0
    allocation: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheme_name not in (INTEGER, SCALE_MIN):
            raise UsageError(
                f"scheme: {self.scheme_name!r} is not known", f"choose {INTEGER} or {SCALE_MIN}"
            )
        if self.scheme_name == SCALE_MIN and (self.group_size != 32 or not self.symmetric):
            raise UsageError(
                "scale and minimum come in groups of 32, neither symmetric nor asymmetric",
                "leave --group-size and --asymmetric out",
            )
        self._check_activations()
        for name, bits in (
            ("", self.bits),
            ("head ", self.head_bits),
            ("embedding ", self.embedding_bits),
        ):
            allowed = SCHEME_BITS[self.scheme_name] + ((FLOAT_BITS,) if name else ())
            if bits is not None and bits not in allowed:
                choices = ", ".join(map(str, allowed))
                raise UsageError(f"{name}bits: {bits} is not supported", f"choose {choices}")
        IntegerScheme(8, self.group_size, self.symmetric)  # refuses other group sizes
        methods = (*METHODS, CALIBRATED)
        if self.method not in methods:
            raise UsageError(f"method: {self.method!r} is not known", choose(self.method, methods))
        for label, value in (("prefix correction", self.prefix_correction),):
            if not 0 <= value <= 1:
                raise UsageError(f"{label} {value} is outside 0..1", "use a share, e.g. 0.5")
        if not 0 < self.damping <= 1:
            raise UsageError(f"damping {self.damping} is outside 0..1", "use a share, e.g. 0.01")
        if self.tuning_epochs < 0:
            raise UsageError(f"{self.tuning_epochs} epochs of tuning", "use 0 or more")
        if self.tuning_epochs and self.method != CALIBRATED:
            raise UsageError(f"method {self.method!r} is not tuned", f"add --method {CALIBRATED}")
        if self.max_memory < MIN_MEMORY:
            raise UsageError(
                f"max memory {self.max_memory} bytes", "use at least 256MiB, e.g. 2GiB"
            )

    def _check_activations(self) -> None:
        choices = (FLOAT_ACTIVATIONS, INT8_ACTIVATIONS)
        if self.activations not in choices:
            raise UsageError(
                f"activations: {self.activations!r} is not known",
                choose(self.activations, choices),
            )
        if self.activations == FLOAT_ACTIVATIONS:
            return
        if self.bits != 8 or self.scheme_name != INTEGER or not self.symmetric:
            raise UsageError(
                "int8 activations need int8 weights without zero points",
                "use --bits 8, and leave --scheme and --asymmetric out",
            )
        if self.tuning_epochs:
            raise UsageError(
                "tuning knows nothing of int8 activations", "leave --tuning-epochs out"
            )
        if self.embedding_bits != FLOAT_BITS:
            raise UsageError(
                "int8 activations: no other reader takes a quantized embedding beside them",
                "leave --embedding-bits out",
            )

    def scheme(self, bits: int, role: Role) -> Scheme | None:
        """The scheme of a matrix that is to have this many bits."""
        if bits == FLOAT_BITS:
            return None
        if self.activations == INT8_ACTIVATIONS and role is Role.LINEAR:
            return Int8Rows()
        if self.scheme_name == SCALE_MIN and bits != 8:
            return ScaleMin(bits)
        return IntegerScheme(bits, self.group_size, self.symmetric)

    def recipe(self) -> dict[str, Any]:
        """What decides the output's bytes."""
        return {key: value for key, value in vars(self).items() if key != "threads"}


def default_method(bits: int, activations: str, calibrates: bool, can_write: bool) -> str:
    """Calibrated, but for 8-bit weights alone, which lose little without (docs/calibration.md).

    calibrates: a calibration text or a target is given; can_write: the model has a tokenizer, so
    that it can write a text itself.
    """
    if calibrates or activations == INT8_ACTIVATIONS:
        return CALIBRATED
    return CALIBRATED if bits != 8 and can_write else "search"


def default_embedding_bits(method: str, scheme_name: str, bits: int, activations: str) -> int:
    """What measured best at about 4.6 bits over all parameters; readers of other tools want the
    embedding in float, so it stays so without calibration."""
    if method != CALIBRATED or activations == INT8_ACTIVATIONS:
        return FLOAT_BITS
    return min(bits + 1, 6) if scheme_name == SCALE_MIN and bits < 8 else bits


def default_prefix_correction(bits: int) -> float:
    """At 8 bits there is less to make up for than the correction's own noise adds (measured)."""
    return 0.0 if bits == 8 else PREFIX_CORRECTION


@dataclass(frozen=True)
class BitsTarget:
    """What the choice must reach: exactly one is given.

    bits_per_weight: over all parameters; size: bytes of all weights; max_kl: estimated mean KL in
    nats per token.
    """

    bits_per_weight: float | None = None
    size: int | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        given = [self.bits_per_weight, self.size, self.max_kl]
        if sum(value is not None for value in given) != 1:
            raise UsageError("several targets at once", "use one of bits, size and KL")
        if any(value is not None and not value > 0 for value in given):
            raise UsageError("a target must be positive", "for example --target-bpw 4.75")
