"""What is asked of a model: tokens in, and tokens or logits back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.generate.generate import Generation, StopReason
from dsconv.runtime.generate.sampling import Sampling

# Told of every token and the logits [vocabulary] that it was chosen from (an array that is used
# again); may say why the text ends there.
OnToken = Callable[[int, NDArray[np.float32]], StopReason | None]
# Told of rows of the prompt's logits: index of the first one's token, logits [tokens, vocabulary]
# after each.
OnPrompt = Callable[[int, NDArray[np.float32]], None]


def _go_on(token: int, logits: NDArray[np.float32]) -> StopReason | None:
    return None


@dataclass(frozen=True)
class Request:
    """A prompt to go on from.

    max_tokens: 0 computes the prompt alone. on_prompt: wants the logits after every token of the
    prompt from the index `prompt_logits_from` on; None wants none.
    """

    tokens: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Collection[int] = ()
    on_token: OnToken = _go_on
    on_prompt: OnPrompt | None = None
    prompt_logits_from: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a request: a generation, or the error that ended it. reused: tokens of the
    prompt whose keys and values were there already."""

    generation: Generation | None
    error: Exception | None = None
    reused: int = 0
