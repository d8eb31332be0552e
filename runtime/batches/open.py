"""The batch of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dsconv.errors import UsageError
from dsconv.runtime.memory import free_memory_bytes
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.sessions.native import NativeSession

from .batch import Batch
from .native import NativeBatch
from .one_by_one import OneByOne

INDEPENDENT = ("int8", "own", "int16")  # roundings of a token that no other one has a part in
ACTIVATIONS = "own"
GUESSERS_SHARE = 8  # of the cache's memory a guesser gets one in so many parts, besides


class Guesser(Protocol):
    """A smaller model that guesses what comes next."""

    def beside(self, batch: Batch, cache_bytes: int) -> Batch:
        """The batch, guessed for; cache_bytes: of the guesser's own keys and values."""
        ...


@dataclass(frozen=True)
class BatchOptions:
    """What a batch may take.

    sequences: at once, at most; 0 leaves the choice to the runtime. cache_bytes: memory for keys
    and values; 0 is half of what is free. activations: how a native file's are rounded in every
    pass: int8, own (8 bits, 16 where they matter) or int16. guesser: looks ahead; the logits are
    those without it where they do not depend on how many tokens a pass has.
    """

    sequences: int = 0
    cache_bytes: int = 0
    activations: str = ACTIVATIONS
    guesser: Guesser | None = None

    def __post_init__(self) -> None:
        if self.sequences < 0 or self.cache_bytes < 0:
            raise UsageError("sequences and memory of a batch are not negative", "0 is a default")
        if self.activations not in INDEPENDENT:
            raise UsageError(
                f"activations: {self.activations!r} is not known",
                f"choose {' or '.join(INDEPENDENT)}",
            )


def open_batch(loaded: Loaded, options: BatchOptions | None = None) -> Batch:
    """Many sequences where the runtime can, else one after the other.

    Its sequences and those of `loaded.session` may share the cache: use one of the two at a time.
    """
    options = options or BatchOptions()
    batch = _open(loaded, options)
    if options.guesser is None:
        return batch
    cache_bytes = (options.cache_bytes or free_memory_bytes() // 2) // GUESSERS_SHARE
    return options.guesser.beside(batch, cache_bytes)


def _open(loaded: Loaded, options: BatchOptions) -> Batch:
    if options.activations != ACTIVATIONS and not isinstance(loaded.session, NativeSession):
        raise UsageError(
            f"activations: {options.activations} is for .dsq files",
            "leave it out: other runtimes round as the artifact says",
        )
    if isinstance(loaded.session, NativeSession):
        cache_bytes = options.cache_bytes or free_memory_bytes() // 2
        return NativeBatch(loaded.session, options.activations, cache_bytes, options.sequences)
    if loaded.runtime == "onnxruntime":
        from dsconv.runtime.sessions.onnx import OnnxSession

        from .onnx import OnnxBatch, can_batch

        if isinstance(loaded.session, OnnxSession) and can_batch(loaded.session):
            cache_bytes = options.cache_bytes or free_memory_bytes() // 4
            return OnnxBatch(loaded.session, cache_bytes, options.sequences)
    if loaded.runtime == "torch":
        from dsconv.runtime.sessions.torch_device_session import AcceleratorSession
        from dsconv.runtime.sessions.torch_reference import TorchSession

        from .torch_device import TorchBatch, free_bytes

        if isinstance(loaded.session, AcceleratorSession | TorchSession):
            cache_bytes = options.cache_bytes or free_bytes(loaded.session) // 2
            return TorchBatch(loaded.session, cache_bytes, options.sequences)
    return OneByOne(loaded.session)
