"""Choose the next token: temperature, then top-k, then top-p, the order that transformers uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError, UsageError

MAX_TEMPERATURE = 100.0
# Top-p sorts only the most likely tokens: this many first, then more while they do not suffice.
FIRST_CANDIDATES = 256
CANDIDATE_GROWTH = 16


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy, top_p 1 and top_k 0 leave all tokens in.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        # `not low <= value` instead of `value < low`: NaN fails too.
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"temperature {self.temperature} is outside 0..{MAX_TEMPERATURE:g}",
                "0 is greedy, reasoning models want 0.5 to 0.7",
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p} is outside (0, 1]", "1 switches it off")
        if self.top_k < 0:
            raise UsageError(f"top_k {self.top_k} is negative", "0 switches it off")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed {self.seed} is outside 0..2**64-1", "choose a smaller one")

    def with_overrides(
        self,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Sampling:
        """The same with the values that the user gave; None keeps what is there."""
        given: Mapping[str, float | int | None] = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(self, **chosen)  # type: ignore[arg-type]  # names and types match above


def from_generation_config(reader: ConfigReader) -> Sampling:
    """The model's own settings: greedy unless the file says do_sample.

    top_p and top_k are kept for a greedy model too, for the user who then asks for a temperature.

    Raises:
        InputError: a value in the file is no number or outside its range.
    """
    temperature = reader.number("temperature", 1.0, 0.0, MAX_TEMPERATURE)
    return Sampling(
        temperature=temperature if reader.boolean("do_sample", False) else 0.0,
        top_p=reader.number("top_p", 1.0, 1e-6, 1.0),
        top_k=reader.integer("top_k", 0, low=0),
    )


def _check_finite(logits: NDArray[np.float32]) -> None:
    wrong = logits.size - int(np.count_nonzero(np.isfinite(logits)))
    if wrong:
        what = "NaN" if np.isnan(logits).any() else "infinity"
        raise InputError(
            f"the model produced {what}: {wrong} of {logits.size} logits are not finite",
            "the weights are damaged or overflow in fp16; verify the artifact, or run in fp32",
        )


def top_k_tokens(logits: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """Ids, in ascending order, of the top_k largest logits; equals of the last one stay in."""
    smallest = np.partition(logits, logits.size - top_k)[logits.size - top_k]
    return np.flatnonzero(logits >= smallest)


def top_p_indices(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Indices of the fewest most likely entries whose sum reaches top_p, most likely first."""
    size = probabilities.size
    count = min(FIRST_CANDIDATES, size)
    while True:
        smallest = np.partition(probabilities, size - count)[size - count]
        some = np.flatnonzero(probabilities >= smallest)
        # Stable: of equals, those with the lower index come first.
        some = some[np.argsort(-probabilities[some], kind="stable")]
        last = int(np.searchsorted(np.cumsum(probabilities[some]), top_p, side="left"))
        if last < some.size or some.size == size:
            return some[: last + 1]
        count = min(count * CANDIDATE_GROWTH, size)


def filtered(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Tokens that may be chosen at a temperature above 0, and their probabilities (sum 1)."""
    tokens = np.arange(logits.size)
    if 0 < sampling.top_k < logits.size:
        tokens = top_k_tokens(logits, sampling.top_k)
    scaled = logits[tokens].astype(np.float64)
    # The largest comes off before the division: no temperature can overflow it.
    probabilities = np.exp((scaled - scaled.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        best = top_p_indices(probabilities, sampling.top_p)
        tokens, probabilities = tokens[best], probabilities[best]
        probabilities /= probabilities.sum()
    return tokens, probabilities


class Sampler:
    """Draws tokens; the same seed and the same logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token, given logits [vocabulary].

        Raises:
            InputError: the logits hold NaN or infinity.
        """
        _check_finite(logits)
        if self.sampling.temperature == 0:
            return int(np.argmax(logits))
        tokens, probabilities = filtered(logits, self.sampling)
        cumulative = np.cumsum(probabilities)
        # Scaled by the last sum, which rounding leaves near 1 but not at it.
        drawn = self._random.random() * cumulative[-1]
        index = int(np.searchsorted(cumulative, drawn, side="right"))
        return int(tokens[min(index, tokens.size - 1)])
