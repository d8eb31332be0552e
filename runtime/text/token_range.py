"""Tokens that the embedding has no row for: added to a tokenizer whose model was not resized."""

from __future__ import annotations

from collections.abc import Sequence

from dsconv.errors import InputError

from .tokenizer import TextTokenizer

CURE = (
    "resize the embedding of the original model to its tokenizer (resize_token_embeddings), or "
    "remove the token from tokenizer.json"
)


def refuse_tokens_beyond(
    tokens: Sequence[int], vocabulary: int, where: str, tokenizer: TextTokenizer
) -> None:
    """Before any of them reaches a model.

    Raises:
        InputError: naming the place, the token, its text and the rows that there are.
    """
    wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if wrong is None:
        return
    text = tokenizer.decode([wrong], skip_special=False)
    raise InputError(
        f"{where}: token {wrong} ({text!r}) is beyond the embedding, which has {vocabulary} rows",
        CURE,
    )
