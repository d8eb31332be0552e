"""How a task wants its texts to be written: the generation arguments of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsconv.convert.checkpoint.checkpoint import generation_config
from dsconv.errors import UsageError, choose
from dsconv.runtime.generate.model_settings import OFF, WHOLE, from_generation_config
from dsconv.runtime.generate.settings import RANGES, Sampling
from dsconv.runtime.sessions.load import Loaded

# Names of one limit; the first of them counts, as in lm-evaluation-harness.
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
STOPS = ("until", "stop")
# Settings that are not offered, and the value with which they change nothing.
WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "length_penalty": (1,),
    "penalty_alpha": (0,),
    "early_stopping": (False,),
    "use_cache": (True, False),
}


@dataclass(frozen=True)
class WritingSettings:
    """until: texts that end it. max_length: of prompt and text together; None leaves it to
    `max_tokens`."""

    sampling: Sampling
    max_tokens: int
    until: tuple[str, ...]
    max_length: int | None = None

    def ending_at(self, text: str) -> WritingSettings:
        """The same, with another text that ends it."""
        return replace(self, until=tuple(dict.fromkeys((*self.until, text))))

    def with_seed(self, number: int) -> Sampling:
        """The next text of the same prompt is another draw."""
        seed = (self.sampling.seed + number) % (int(RANGES["seed"].high) + 1)
        return replace(self.sampling, seed=seed)


def read_settings(
    given: Mapping[str, Any], loaded: Loaded, max_tokens: int, seed: int
) -> WritingSettings:
    """As the back end `hf` reads them: greedy unless a temperature above 0 or do_sample asks to
    draw; what is not named is as the model's generation_config.json says.

    Args:
        max_tokens, seed: where `given` has none.

    Raises:
        UsageError: a setting that is not known or not offered, or a value outside its range.
    """
    values = {name: value for name, value in given.items() if value is not None}
    until = tuple(text for name in STOPS for text in _texts(name, values.pop(name, ())))
    limits = [_whole(name, values.pop(name)) for name in LIMITS if name in values]
    max_length = _whole("max_length", values.pop("max_length")) if "max_length" in values else None
    draws = values.pop("do_sample", None)
    if draws not in (None, True, False):
        raise UsageError(f"do_sample={draws!r} is neither True nor False", "give one of the two")
    for name, harmless in WITHOUT_EFFECT.items():
        if name in values and values.pop(name) not in harmless:
            raise UsageError(
                f"the generation setting {name}={given[name]!r} is not offered",
                f"leave it out, or set it to {harmless[0]}",
            )
    chosen = {name: _number(name, value) for name, value in values.items()}
    reader = generation_config(loaded.side_files, loaded.config)
    if draws is False or (draws is None and not chosen.get("temperature")):
        chosen["temperature"] = 0.0
    elif "temperature" not in chosen:
        chosen["temperature"] = reader.number("temperature", 1.0)
    elif chosen["temperature"] == 0:
        raise UsageError("do_sample=True with temperature 0", "set a temperature, or do_sample")
    chosen.setdefault("seed", seed)
    sampling = from_generation_config(reader, chosen).with_overrides(**chosen)
    return WritingSettings(sampling, limits[0] if limits else max_tokens, until, max_length)


def _texts(name: str, value: Any) -> Sequence[str]:
    texts = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name}={value!r}: not texts", "give a text or a list of texts")
    return [text for text in texts if text]  # tasks write an empty one for none


def _whole(name: str, value: Any) -> int:
    number = _number_of(name, value)
    if number != int(number) or number < 0:
        raise UsageError(f"{name}={value!r} is not a whole number from 0 on", "give a number")
    return int(number)


def _number(name: str, value: Any) -> float | int:
    if name not in RANGES:
        known = (*STOPS, "do_sample", *LIMITS, "max_length", *RANGES)
        raise UsageError(f"the generation setting {name!r} is not known", choose(name, known))
    number = _number_of(name, value)
    if name == "top_k" and number == OFF:
        return 0
    return _whole(name, value) if name in (*WHOLE, "seed") else number


def _number_of(name: str, value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{name}={value!r} is not a number", "give a number")
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"{name}={value!r} is not a number", "give a number") from error
