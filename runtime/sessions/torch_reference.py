"""The reference: a checkpoint's weights in torch, behind the same protocol as an artifact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.forward.torch_ops import DTYPES, KeyValueCache, TorchModel

from .session import refuse_unknown_tokens


class TorchSession:
    """One sequence on a checkpoint (quantized ones are dequantized while loading).

    decoder, model, device, dtype: what a batch over the same weights needs
    (runtime/batches/torch_device.py).
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: str = "float32", device: str = "cpu", threads: int = 0
    ) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.decoder, self.device, self.dtype = checkpoint.decoder, device, DTYPES[dtype]
        self._config = checkpoint.decoder.config
        self._model = self.model = TorchModel.load(checkpoint, dtype, device)
        self._cache = KeyValueCache()

    @property
    def vocabulary(self) -> int:
        return self._config.vocab_size

    @property
    def context_length(self) -> int:
        return self._config.max_position_embeddings

    @property
    def position(self) -> int:
        return self._cache.length

    def reset(self) -> None:
        self._cache = KeyValueCache()

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        last: NDArray[np.float32] = self._logits(tokens)[-1]
        return last

    def decode(self, token: int) -> NDArray[np.float32]:
        return self.prefill([token])

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self._logits(tokens)

    def truncate(self, length: int) -> None:
        self._cache.truncate(length)

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self._logits(tokens)

    def _logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        refuse_unknown_tokens(tokens, self.vocabulary)
        logits: NDArray[np.float32] = self._model.forward(tokens, self._cache).float().cpu().numpy()
        return logits
