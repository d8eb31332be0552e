"""What a user asks of a quantization: each choice declared once.

The fields are the options of `dsconv quantize` and `dsconv plan` (`commands/options.py` derives
them) and the keys of [quantize] in a recipe (`build/toml_schema.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsconv.errors import UsageError

from .option_fields import Limits, option

if TYPE_CHECKING:  # the command line imports this module for every command
    from dsconv.convert.quantize.options import BitsTarget, QuantizeOptions
    from dsconv.runtime.calibration.text_windows import CalibrationOptions

BITS = (3, 4, 5, 6, 8)


@dataclass(frozen=True)
class QuantizeRequest:
    """None leaves a choice to `resolve`."""

    bits: int = option(4, "Bits per weight: 4, 8; with scale-min also 3, 5, 6", limits=Limits(BITS))
    scheme: str = option(
        "integer",
        "integer (ONNX, vLLM, vendors) or scale-min (GGUF, native)",
        limits=Limits(("integer", "scale-min")),
    )
    group_size: int = option(
        32, "Weights per scale: 32, 64, 128, -1 = row", limits=Limits((32, 64, 128, -1))
    )
    symmetric: bool = option(True, "Fixed or stored zero points", flag="--symmetric/--asymmetric")
    head_bits: int | None = option(
        None, "Bits of lm_head: 4, 8, 16 (default: as --bits)", limits=Limits((*BITS, 16))
    )
    embedding_bits: int | None = option(
        None,
        "Bits of the token embedding: 4, 8, 16 = as it is (default: with gptq as --bits, one "
        "more with scale-min; else 16)",
        limits=Limits((*BITS, 16)),
    )
    activations: str = option(
        "float",
        "float, or int8 (with --bits 8): int8 products, as vLLM runs them",
        limits=Limits(("float", "int8")),
    )
    method: str | None = option(
        None,
        "gptq: calibrated, the default below 8 bits, and with --calibration, a target or int8 "
        "activations; search: least squares per group, minutes instead of an hour; rtn: to nearest",
        limits=Limits(("gptq", "search", "rtn")),
    )
    calibration: tuple[str, ...] = option(
        (),
        "Text for gptq: self (the model writes it; the default) or FILE (text, or rows of JSON); "
        "several are mixed, self=2 or FILE=2 gives one twice the share",
    )
    calibration_tokens: int = option(32768, "Tokens to calibrate on", limits=Limits(low=1))
    target_bpw: float | None = option(
        None,
        "Choose bits per matrix: this many per weight, over all parameters",
        limits=Limits(low=2, high=16),
    )
    prefix_correction: float | None = option(
        None,
        "0 to 1: how far gptq makes up for the error of earlier layers (default: 0.5; 0 at 8 bits)",
        limits=Limits(low=0, high=1),
    )
    damping: float = option(
        0.01, "Of gptq, share of the mean diagonal", limits=Limits(low=1e-9, high=1)
    )
    tuning_epochs: int = option(
        0,
        "Then train the scales on the original's logits; needs the model in RAM",
        limits=Limits(low=0),
    )
    max_memory: str = option(
        "2GiB", "For activations and second moments; beyond it they go to disk"
    )

    def resolve(self, threads: int, can_write: bool, tied: bool) -> "QuantizeOptions":
        """Options for a model that can write its calibration text, and whose head is its embedding.

        Raises:
            UsageError: choices that contradict each other.
        """
        from dsconv.convert.quantize import options

        from .console import parse_size

        calibrates = bool(self.calibration) or self.has_target
        method = self.method or options.default_method(
            self.bits, self.activations, calibrates, can_write
        )
        self._refuse_bits_beside_a_target()
        embedding_bits = self.embedding_bits
        if embedding_bits is None:
            embedding_bits = options.default_embedding_bits(
                method, self.scheme, self.bits, self.activations
            )
            if tied and self.head_bits is not None and embedding_bits != options.FLOAT_BITS:
                embedding_bits = self.head_bits  # one matrix
        prefix_correction = self.prefix_correction
        if prefix_correction is None:
            prefix_correction = options.default_prefix_correction(self.bits)
        return options.QuantizeOptions(
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            head_bits=self.head_bits,
            embedding_bits=embedding_bits,
            method=method,
            threads=threads,
            scheme_name=self.scheme,
            activations=self.activations,
            prefix_correction=prefix_correction,
            damping=self.damping,
            max_memory=parse_size(self.max_memory),
            tuning_epochs=self.tuning_epochs,
        )

    def _refuse_bits_beside_a_target(self) -> None:
        """Raises UsageError: bits that the choice per matrix would not heed."""
        for name, bits in (("embedding", self.embedding_bits), ("head", self.head_bits)):
            if bits is not None and self.has_target:
                raise UsageError(
                    f"--{name}-bits {bits} with a target: the target chooses the bits of every "
                    f"matrix, that of the {name} too",
                    f"leave out --{name}-bits, or the target",
                )

    @property
    def has_target(self) -> bool:
        return self.target_bpw is not None

    def target(self) -> "BitsTarget | None":
        """What the choice of bits per matrix must reach.

        Raises:
            UsageError: several targets, or one that makes no sense.
        """
        from dsconv.convert.quantize.options import BitsTarget

        return None if self.target_bpw is None else BitsTarget(self.target_bpw)

    def texts(self) -> "CalibrationOptions":
        """Raises UsageError."""
        from dsconv.runtime.calibration.text_windows import CalibrationOptions, CalibrationSource

        sources = tuple(map(CalibrationSource.parse, self.calibration))
        return CalibrationOptions(sources, self.calibration_tokens)

    def manifest(self) -> Path | None:
        """Of an earlier run, whose bits per matrix are to be taken again."""
        return None


@dataclass(frozen=True)
class QuantizeCommandRequest(QuantizeRequest):
    """With what only `dsconv quantize` takes."""

    target_size: str | None = option(
        None, "The same: size of all weights, e.g. 1.2GB", after="target_bpw"
    )
    max_kl: float | None = option(
        None, "The same: estimated mean KL in nats per token", after="target_size"
    )
    recipe: Path | None = option(  # noqa: RUF009 (a field)
        None, "The same bits per matrix as an earlier run's dsconv.json", after="max_kl"
    )

    @property
    def has_target(self) -> bool:
        targets = (self.target_bpw, self.target_size, self.max_kl)
        return any(target is not None for target in targets)

    def target(self) -> "BitsTarget | None":
        from dsconv.convert.quantize.options import BitsTarget

        from .console import parse_size

        if not self.has_target:
            return None
        size = None if self.target_size is None else parse_size(self.target_size)
        return BitsTarget(self.target_bpw, size, self.max_kl)

    def manifest(self) -> Path | None:
        return self.recipe
