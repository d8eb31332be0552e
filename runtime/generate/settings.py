"""How to choose tokens: the settings, in transformers' words, and what each may be."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsconv.errors import UsageError

MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class _Range:
    """What a number may be. The value that switches it off is inside."""

    low: float
    high: float
    hint: str
    above: bool = False  # low itself is not allowed

    def holds(self, value: float) -> bool:
        # `low <= value` is false of NaN, as it should be.
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    @property
    def words(self) -> str:
        return f"outside {'(' if self.above else '['}{self.low:g}, {self.high:.15g}]"


RANGES = {
    "temperature": _Range(0, MAX_TEMPERATURE, "0 is greedy, reasoning models want 0.5 to 0.7"),
    "top_p": _Range(0, 1, "1 switches it off", above=True),
    "top_k": _Range(0, 2**31, "0 switches it off"),
    "min_p": _Range(0, 1, "0 switches it off"),
    "typical_p": _Range(0, 1, "1 switches it off", above=True),
    "epsilon_cutoff": _Range(0, 1, "0 switches it off"),
    "eta_cutoff": _Range(0, 1, "0 switches it off"),
    "repetition_penalty": _Range(0, 1000, "1 switches it off", above=True),
    "presence_penalty": _Range(-2, 2, "0 switches it off"),
    "frequency_penalty": _Range(-2, 2, "0 switches it off"),
    "no_repeat_ngram_size": _Range(0, 2**31, "0 switches it off"),
    "min_new_tokens": _Range(0, 2**31, "0 switches it off"),
    "min_length": _Range(0, 2**31, "0 switches it off"),
    "seed": _Range(0, 2**64 - 1, "choose a smaller one"),
}


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens, in transformers' words, and two of OpenAI's: the penalties on presence
    and frequency. Temperature 0 is greedy; the other defaults leave logits and tokens as they are.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    min_length: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if not allowed.holds(value):
                raise UsageError(f"{name} {value} is {allowed.words}", allowed.hint)

    @property
    def looks_back(self) -> bool:
        """Does it change logits before the choice?"""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.no_repeat_ngram_size
            or self.min_new_tokens
            or self.min_length
            or self.suppress_tokens
            or self.begin_suppress_tokens
            or self.bad_words_ids
            or self.sequence_bias
        )

    def with_overrides(self, **given: float | None) -> Sampling:
        """The same with the values that the user gave; None keeps what is there."""
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(self, **chosen)  # type: ignore[arg-type]  # whole numbers where they belong
