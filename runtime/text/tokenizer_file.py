"""Open tokenizer.json with the tokenizers library, which trusts it.

The library compiles the file's regular expressions, applies its replacements and answers some
contradictions with a panic of Rust, so what it is given is looked at before, and what it does is
watched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import parse_json
from dsconv.convert.files.patterns import slow_pattern
from dsconv.errors import DsconvError, InputError
from dsconv.runtime.sessions.captured_output import captured_output

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
HINT = "download it again from the original model"
STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
PARTS = ("normalizers", "pretokenizers", "processors", "decoders")  # of a Sequence


def open_tokenizer(text: bytes) -> Tokenizer:
    """Load the content of tokenizer.json, without its truncation and padding.

    Raises:
        InputError: broken, or something in it exceeds a limit.
    """
    from tokenizers import Tokenizer

    if len(text) > limits.TOKENIZER_BYTES:
        raise _refusal(f"{len(text)} bytes, limit {limits.TOKENIZER_BYTES}")
    content = parse_json(text, TOKENIZER)
    if not isinstance(content, dict):
        raise _refusal("not an object")
    check_tokenizer(content)
    with library_failures("cannot read"), captured_output():  # a panic has words of its own
        tokenizer = Tokenizer.from_buffer(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


@contextmanager
def library_failures(what: str) -> Iterator[None]:
    """Turn whatever the library raises into InputError; a panic of Rust is no Exception."""
    try:
        yield
    except (DsconvError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise _refusal(f"{what}: {error}") from error


def _refusal(problem: str) -> InputError:
    return InputError(f"{TOKENIZER}: {problem}", HINT)


def check_tokenizer(content: Mapping[str, Any]) -> None:
    """Raises InputError: sizes, patterns or replacements beyond the limits."""
    _check_tokens(content)
    for stage in STAGES:
        if content.get(stage) is not None:
            _check_shape(stage, content[stage])
        steps = list(_steps(content.get(stage)))
        if len(steps) > limits.TOKENIZER_STAGES:
            raise _refusal(f"{stage}: {len(steps)} steps, limit {limits.TOKENIZER_STAGES}")
        _check_growth(stage, steps)
        for step in steps:
            _check_pattern(stage, step)


def _check_shape(stage: str, step: Any) -> None:
    """The library takes steps as bare lists of their settings too, and without a type: no writer
    makes those, and the checks below would not know them."""
    if not isinstance(step, dict) or not isinstance(step.get("type"), str):
        raise _refusal(f"{stage}: a step that is no object with a type: {str(step)[:80]}")
    for key in PARTS:
        parts = step.get(key, [])
        if not isinstance(parts, list):
            raise _refusal(f"{stage}: {key} is no list")
        for part in parts:
            _check_shape(stage, part)


def _check_tokens(content: Mapping[str, Any]) -> None:
    model = content.get("model")
    if not isinstance(model, dict):
        raise _refusal("model is no object")
    parts = model
    added, vocabulary, merges = content.get("added_tokens"), parts.get("vocab"), parts.get("merges")
    for what, items, limit in (
        ("added tokens", added, limits.ADDED_TOKENS),
        ("tokens", vocabulary, limits.VOCABULARY),
        ("merges", merges, limits.VOCABULARY),
    ):
        if isinstance(items, (list, dict)) and len(items) > limit:
            raise _refusal(f"{len(items)} {what}, limit {limit}")
    texts: list[Any] = [value for value in parts.values() if isinstance(value, str)]
    if isinstance(vocabulary, dict):
        texts += vocabulary
    elif isinstance(vocabulary, list):  # of pairs of a token and its score
        texts += [part for pair in vocabulary if isinstance(pair, list) for part in pair[:1]]
        total = sum(len(text) for text in texts if isinstance(text, str))
        if total > limits.UNIGRAM_CHARACTERS:
            raise _refusal(f"tokens of {total} characters, limit {limits.UNIGRAM_CHARACTERS}")
    for token in added if isinstance(added, list) else ():
        if not isinstance(token, dict):
            raise _refusal(f"an added token that is no object: {str(token)[:80]}")
        texts.append(token.get("content"))
    longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
    if longest > limits.TOKEN_CHARACTERS:
        raise _refusal(f"a token of {longest} characters, limit {limits.TOKEN_CHARACTERS}")


def _steps(stage: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a stage that has a type, however deep."""
    pending = [stage]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if "type" in item:
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _pattern_of(step: Mapping[str, Any]) -> tuple[str, Any]:
    """-> (String or Regex, the text)."""
    pattern = step.get("pattern")
    if not isinstance(pattern, dict):
        return "", None
    return next(iter(pattern.items()), ("", None))


def _check_pattern(stage: str, step: Mapping[str, Any]) -> None:
    pattern = step.get("pattern")
    for kind, text in pattern.items() if isinstance(pattern, dict) else ():
        if kind == "Regex" and isinstance(text, str):
            problem = slow_pattern(text, limits.TOKENIZER_PATTERN_CHARACTERS)
            if problem is not None:
                raise _refusal(f"{stage}: pattern {text[:80]!r} might run for ever: {problem}")


def _check_growth(stage: str, steps: list[Mapping[str, Any]]) -> None:
    """Replacements one after the other multiply."""
    growth = 1.0
    for step in steps:
        texts = [step.get("content"), step.get("prepend"), step.get("replacement")]
        longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
        if longest > limits.REPLACEMENT_CHARACTERS:
            raise _refusal(
                f"{stage}: a replacement of {longest} characters, limit "
                f"{limits.REPLACEMENT_CHARACTERS}"
            )
        kind, pattern = _pattern_of(step)
        if step.get("type") == "Replace" and pattern is not None:
            found = len(pattern) if kind == "String" and isinstance(pattern, str) else 0
            growth *= max(1.0, longest / found if found else longest + 1.0)
    if growth > limits.REPLACEMENT_GROWTH:
        raise _refusal(
            f"{stage}: replacements lengthen a text {growth:.0f} times, limit "
            f"{limits.REPLACEMENT_GROWTH}"
        )
