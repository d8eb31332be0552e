"""Tokens that tokenizer_config.json names and tokenizer.json does not have, or marks otherwise.

transformers adds them when it loads a tokenizer (`TokenizersBackend.__init__`); without them a mark
such as `<|im_start|>` would be cut into its letters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

DECODER = "added_tokens_decoder"
LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
MARKS = ("single_word", "lstrip", "rstrip")
MAX_DIGITS = 9  # of a token's id
HINT = "the tokenizer files belong to different models; download them again"


def add_tokens(
    tokenizer: Tokenizer, settings: ConfigReader, older: ConfigReader, named: Sequence[str]
) -> None:
    """Give the tokenizer what tokenizer_config.json and its special tokens name.

    Args:
        older: added_tokens.json, text -> id, which counts where tokenizer_config.json has none.
        named: texts of the special tokens.

    Raises:
        InputError: a token has another id than the one that is named for it, or is malformed.
    """
    specials = list(_special_tokens(settings, named))
    special_texts = {token.content for token in specials}
    present = {str(token): token for token in tokenizer.get_added_tokens_decoder().values()}
    source = settings if settings.has(DECODER) else older
    wanted = dict(
        _decoder_tokens(settings, special_texts)
        if settings.has(DECODER)
        else _older_tokens(older, special_texts, present)
    )
    pending = [
        token
        for _, token in sorted(wanted.items())
        if repr(token) != repr(present.get(token.content))
    ]
    known = {*present, *(token.content for token in pending)}
    pending += [token for token in specials if token.content not in known]
    if pending:
        tokenizer.add_tokens(pending)
    for number, token in wanted.items():
        found = tokenizer.token_to_id(token.content)
        if found != number:
            raise InputError(
                f"{source.where}: {token.content!r} is token {number}, but {found} "
                "by tokenizer.json",
                HINT,
            )


def _decoder_tokens(
    settings: ConfigReader, specials: Collection[str]
) -> Iterator[tuple[int, AddedToken]]:
    """specials: which are special whatever their mark says, as in transformers."""
    from tokenizers import AddedToken

    decoder = settings.child(DECODER)
    for key in decoder.data if decoder is not None else ():
        entry = decoder.child(key) if decoder is not None else None
        if entry is None or not key.isdecimal() or len(key) > MAX_DIGITS:
            raise settings.fail(DECODER, f"{str(key)[:40]!r} is no token with its marks")
        content = _checked(settings, entry.string("content"))
        special = entry.boolean("special", False) or content in specials
        marks = {mark: entry.boolean(mark, False) for mark in MARKS}
        normalized = entry.boolean("normalized", not entry.boolean("special", False))
        yield int(key), AddedToken(content, normalized=normalized, special=special, **marks)


def _older_tokens(
    older: ConfigReader, specials: Collection[str], present: Mapping[str, AddedToken]
) -> Iterator[tuple[int, AddedToken]]:
    """Marks of its tokens are those of tokenizer.json, where they are there."""
    from tokenizers import AddedToken

    for key in older.data:
        number, content = older.integer(key, low=0), _checked(older, key)
        plain = AddedToken(content, normalized=content not in specials, special=content in specials)
        yield number, present.get(content, plain)


def _special_tokens(settings: ConfigReader, named: Sequence[str]) -> Iterator[AddedToken]:
    from tokenizers import AddedToken

    for text in named:
        yield AddedToken(_checked(settings, text), special=True)
    for key in LISTS:
        value = settings.data.get(key) or ()
        if isinstance(value, Mapping):
            value = list(value.values())
        if not isinstance(value, (list, tuple)) or len(value) > limits.ADDED_TOKENS:
            raise settings.fail(key, f"{str(value)[:60]} is not a list of tokens")
        for item in value:
            content: Any = item.get("content") if isinstance(item, Mapping) else item
            yield AddedToken(_checked(settings, content), special=True)


def _checked(settings: ConfigReader, text: Any) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= limits.TOKEN_CHARACTERS:
        raise settings.fail("special tokens", f"{str(text)[:40]!r} is no token")
    return text
