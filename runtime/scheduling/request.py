"""What is asked of a model: tokens in, and tokens or logits back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError, UsageError
from dsconv.runtime.batches.batch import Batch
from dsconv.runtime.generate.generate import Generation, StopReason
from dsconv.runtime.generate.sampling import Sampling

# Told of every token and the logits [vocabulary] that it was chosen from (an array that is used
# again); may say why the text ends there.
OnToken = Callable[[int, NDArray[np.float32]], StopReason | None]
# Told of rows of the prompt's logits: index of the first one's token, logits [tokens, vocabulary]
# after each (an array that is used again).
OnPrompt = Callable[[int, NDArray[np.float32]], None]


# Told of the token of `stop_ids` that ends a text, and of its logits.
OnEnd = Callable[[int, NDArray[np.float32]], None]


def _go_on(token: int, logits: NDArray[np.float32]) -> StopReason | None:
    return None


@dataclass(frozen=True)
class Request:
    """A prompt to go on from.

    max_tokens: 0 computes the prompt alone. on_prompt: wants the logits after every token of the
    prompt from the index `prompt_logits_from` on; None wants none. What a callback raises ends its
    own request.
    """

    tokens: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Collection[int] = ()
    on_token: OnToken = _go_on
    on_prompt: OnPrompt | None = None
    prompt_logits_from: int = 0
    on_end: OnEnd | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a request: a generation, or the error that ended it. reused: tokens of the
    prompt whose keys and values were there already. of_pass: the pass failed that it was part of,
    by nobody's fault or another's."""

    generation: Generation | None
    error: Exception | None = None
    reused: int = 0
    of_pass: bool = False


def refuse(request: Request, batch: Batch) -> None:
    """Raises UsageError, InputError: the request can never be served by this batch."""
    count = len(request.tokens)
    if count == 0:
        raise UsageError("the prompt is empty", "use at least one word")
    if request.max_tokens < 0:
        raise UsageError(f"max tokens is {request.max_tokens}", "use a positive number")
    if count > batch.context_length:
        raise InputError(
            f"the prompt has {count} tokens, the context {batch.context_length}",
            "shorten the prompt; the context is fixed in the model or artifact",
        )
    if count > batch.capacity:
        raise too_large(count, batch)
    wrong = next((token for token in request.tokens if not 0 <= token < batch.vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"the prompt holds token {wrong}, the model has {batch.vocabulary}",
            "tokenizer.json belongs to another model",
        )


def too_large(count: int, batch: Batch) -> InputError:
    """The prompt needs more than all of the cache."""
    return InputError(
        f"the prompt has {count} tokens, the cache for keys and values holds {batch.capacity}",
        "shorten the prompt, or give the cache more memory",
    )
