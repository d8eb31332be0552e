"""How a model wants its text to be written: its generation_config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dsconv.convert.checkpoint.checkpoint import generation_config
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.known_key import Use
from dsconv.errors import InputError
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.tokenizer import tokenizer_remarks

from .answer import Wanted
from .generation_keys import GENERATION_KEYS
from .settings import RANGES, Sampling

OFF = -1  # of top_k, as users of vLLM write it
WHOLE = ("top_k", "no_repeat_ngram_size", "min_new_tokens", "min_length")
OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)  # of `run`
OF_USERS = ("seed", "presence_penalty", "frequency_penalty")  # no file has them
DEFAULT_TOKENS = 1024
MAX_LIST = 100_000  # tokens and sequences that a file may name


def wanted_answer(
    loaded: Loaded,
    given: Mapping[str, float | None],
    stop: Sequence[str] = (),
    speculate: int = 0,
) -> Wanted:
    """The model's settings with those that the user gave in their place, which are not even read.

    Without a generation_config.json those that config.json holds count, as in models before it.

    Args:
        given: by the names of `Sampling`, and max_tokens; None is not given.
        stop: besides the model's own.

    Raises:
        InputError: a value in the file is no number or outside its range.
        UsageError: a value that the user gave is.
    """
    reader = generation_config(loaded.side_files, loaded.config)
    chosen = {name: value for name, value in given.items() if value is not None}
    tokens = chosen.pop("max_tokens", None)
    if tokens is None:
        tokens = reader.integer("max_new_tokens", DEFAULT_TOKENS)
    return Wanted(
        from_generation_config(reader, chosen).with_overrides(**chosen),
        int(tokens),
        (*stop, *_stop_strings(reader)),
        speculate,
        (*remarks_on(reader, replaced=chosen), *tokenizer_remarks(loaded.side_files)),
    )


def from_generation_config(reader: ConfigReader, replaced: Collection[str] = ()) -> Sampling:
    """The model's own settings: greedy unless the file says do_sample.

    Filters are kept for a greedy model too, for the user who then asks for a temperature.

    Args:
        replaced: names that the user gave, which are left as they are by default.

    Raises:
        InputError: a value in the file is no number or outside its range.
    """
    plain = Sampling()
    values: dict[str, Any] = {}
    for name in RANGES:
        if name in replaced or name in OF_USERS or not reader.has(name):
            continue
        values[name] = _number(reader, name)
    if "temperature" not in replaced:
        samples = reader.boolean("do_sample", False)
        values["temperature"] = values.get("temperature", 1.0) if samples else 0.0
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        values[name] = _tokens(reader, name, reader.data.get(name) or [])
    words = _list(reader, "bad_words_ids")
    values["bad_words_ids"] = tuple(_sequence(reader, "bad_words_ids", item) for item in words)
    values["sequence_bias"] = tuple(_bias(reader, item) for item in _list(reader, "sequence_bias"))
    return replace(plain, **values)


def remarks_on(reader: ConfigReader, replaced: Collection[str] = ()) -> tuple[str, ...]:
    """A sentence for each setting that is known and not applied."""
    return tuple(
        f"{reader.where}: {key} = {str(reader.data[key])[:60]} is not applied: {known.why}"
        for key, known in GENERATION_KEYS.items()
        if known.use is Use.NAMED and key not in replaced and known.asks(reader.data.get(key))
    )


def _number(reader: ConfigReader, name: str) -> float | int:
    allowed, whole = RANGES[name], name in WHOLE
    value = reader.number(name, low=-1e12)
    if name == "top_k" and value == OFF:
        return 0
    if (whole and value != int(value)) or not allowed.holds(value):
        problem = "not a whole number" if allowed.holds(value) else allowed.words
        message = reader.fail(name, f"{reader.data[name]} is {problem}").message
        option = f"--{name.replace('_', '-')}"
        cure = f"; {option} takes its place" if name in OPTIONS else ""
        raise InputError(message, f"correct the file{cure}")
    return int(value) if whole else value


def _list(reader: ConfigReader, name: str) -> list[Any]:
    value = reader.data.get(name) or []
    if not isinstance(value, list) or len(value) > MAX_LIST:
        raise reader.fail(name, f"{str(value)[:60]} is not a list of at most {MAX_LIST}")
    return value


def _tokens(reader: ConfigReader, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_LIST:
        raise reader.fail(name, f"{str(value)[:60]} is not a list of at most {MAX_LIST} tokens")
    return ConfigReader({name: value}, reader.where).token_ids(name)


def _sequence(reader: ConfigReader, name: str, value: object) -> tuple[int, ...]:
    tokens = _tokens(reader, name, value)
    if not tokens:
        raise reader.fail(name, "holds an empty sequence")
    return tokens


def _bias(reader: ConfigReader, item: object) -> tuple[tuple[int, ...], float]:
    """transformers writes [[tokens, bias], …] into the file."""
    if not isinstance(item, list) or len(item) != 2:
        raise reader.fail("sequence_bias", f"{str(item)[:60]} is not [tokens, bias]")
    bias = ConfigReader({"sequence_bias": item[1]}, reader.where).number("sequence_bias", low=-1e12)
    return _sequence(reader, "sequence_bias", item[0]), bias


def _stop_strings(reader: ConfigReader) -> tuple[str, ...]:
    value = reader.data.get("stop_strings")
    if value is None:
        return ()
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise reader.fail("stop_strings", f"{str(value)[:60]} is not a list of texts")
    return tuple(texts)
