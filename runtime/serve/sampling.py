"""Settings that both interfaces take: how tokens are chosen, and when a text ends."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dsconv.errors import DsconvError
from dsconv.runtime.generate.answer import Wanted
from dsconv.runtime.generate.model_settings import wanted_answer
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.generate.written_text import stop_tokens

from .fields import Fields
from .problems import Problem
from .served import Served

NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
MOST_STOPS = 64
MOST_BIASES = 1024
MOST_LOGPROBS = 20
SEEDS = 1 << 64
MOST = (1 << 31) - 1
# Of clients and their operators; they do not change an answer.
WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)


@dataclass(frozen=True)
class Settings:
    """stop_ids: tokens that end a text. n: texts per prompt."""

    wanted: Wanted
    stop_ids: tuple[int, ...]
    n: int
    stream: bool
    stream_usage: bool

    def sampling(self, index: int) -> Sampling:
        """Of the index-th text of a prompt: the seeds count up."""
        base = self.wanted.sampling
        return replace(base, seed=(base.seed + index) % SEEDS)


def read_settings(fields: Fields, served: Served, tokens: int | None) -> Settings:
    """tokens: of an answer at most, where the request says it.

    Raises:
        Problem: a value makes no sense.
    """
    _check_model(fields, served)
    fields.without_effect(*WITHOUT_EFFECT)
    given: dict[str, float | None] = {name: fields.number(name) for name in NUMBERS}
    top_k = fields.integer("top_k", -1, MOST)
    given["top_k"] = 0 if top_k == -1 else top_k
    given["no_repeat_ngram_size"] = fields.integer("no_repeat_ngram_size", 0, MOST)
    given["min_new_tokens"] = fields.integer("min_tokens", 0, MOST)
    seed = fields.integer("seed", -(1 << 63), SEEDS - 1)
    given["seed"] = secrets.randbelow(1 << 63) if seed is None else seed % SEEDS
    n = fields.integer("n", 1, served.limits.texts)
    stop = fields.texts("stop", MOST_STOPS)
    ids = _stop_ids(fields)
    try:
        wanted = wanted_answer(served.loaded, {**given, "max_tokens": tokens}, stop)
    except DsconvError as error:
        raise Problem(400, f"{error.message}; {error.hint}", _named(error, given)) from error
    bias = _biases(fields, served)
    if bias:
        sampling = wanted.sampling
        wanted = replace(
            wanted, sampling=replace(sampling, sequence_bias=(*sampling.sequence_bias, *bias))
        )
    ends = () if fields.boolean("ignore_eos") else served.tokenizer.stop_ids
    stream = fields.boolean("stream")
    return Settings(
        wanted,
        (*ends, *ids, *stop_tokens(served.tokenizer, wanted.stop)),
        n or 1,
        stream,
        _stream_usage(fields, stream),
    )


def _named(error: DsconvError, given: Mapping[str, Any]) -> str | None:
    return next((name for name in given if error.message.startswith(f"{name} ")), None)


def _check_model(fields: Fields, served: Served) -> None:
    name = fields.text("model")
    if name is not None and name != served.name:
        raise Problem(
            404,
            f"model {name[:200]!r} is not here; {served.name!r} is",
            "model",
            "model_not_found",
        )


def _stop_ids(fields: Fields) -> tuple[int, ...]:
    ids = fields.items("stop_token_ids", MOST_STOPS)
    if not all(type(token) is int and 0 <= token < MOST for token in ids):
        raise fields.wrong("stop_token_ids", "is not a list of token ids")
    return tuple(ids)


def _biases(fields: Fields, served: Served) -> list[tuple[tuple[int, ...], float]]:
    given = fields.any("logit_bias")
    if given is None:
        return []
    if not isinstance(given, dict) or len(given) > MOST_BIASES:
        raise fields.wrong("logit_bias", f"is not an object of at most {MOST_BIASES} tokens")
    found: list[tuple[tuple[int, ...], float]] = []
    for name, bias in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise fields.wrong("logit_bias", f"{name[:20]!r} is not a token id")
        if int(name) >= served.loaded.session.vocabulary:
            raise fields.wrong("logit_bias", f"the model has no token {name}")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise fields.wrong("logit_bias", "a bias is not a number from -100 to 100")
        found.append(((int(name),), float(bias)))
    return found


def _stream_usage(fields: Fields, stream: bool) -> bool:
    options = fields.child("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.wrong("stream_options", "is for streams; set stream")
    usage = options.boolean("include_usage")
    options.without_effect("include_obfuscation")
    options.refuse("continuous_usage_stats", "usage comes at the end only", False)
    options.done()
    return usage
