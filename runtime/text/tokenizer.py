"""Text to tokens and back, by tokenizer.json and its side files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsconv.convert.files.json_file import ConfigReader, parse_json
from dsconv.convert.files.known_key import Use
from dsconv.errors import InputError, UsageError

from .added_tokens import add_tokens
from .tokenizer_file import TOKENIZER, library_failures, open_tokenizer
from .tokenizer_keys import TOKENIZER_KEYS

# The first file that has the key decides, even when it says null.
SPECIAL_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
# What a decoded text ends with while the bytes of its last character are incomplete.
REPLACEMENT = "\ufffd"
# A character has at most four bytes; a longer wait means bytes that never become text.
MAX_PENDING_TOKENS = 16
CONTEXT_TOKENS = 8  # enough before a token to know whether its leading space is kept


def read_side_file(side_files: Mapping[str, bytes], name: str) -> ConfigReader:
    """A JSON object among the side files, empty when there is none.

    Raises:
        InputError: not JSON, or not an object.
    """
    data = parse_json(side_files[name], name) if name in side_files else {}
    if not isinstance(data, dict):
        raise InputError(f"{name}: not an object", "download the file again")
    return ConfigReader(data, name)


def _token_text(reader: ConfigReader, key: str) -> str:
    """A special token is written as a string or as an object with `content`."""
    child = reader.child(key) if isinstance(reader.data[key], dict) else None
    return child.string("content") if child is not None else reader.string(key)


def _special_tokens(side_files: Mapping[str, bytes]) -> dict[str, str | None]:
    """Name and text of the special tokens; None for one that a file sets to null."""
    found: dict[str, str | None] = {}
    for name in SPECIAL_TOKEN_FILES:
        reader = read_side_file(side_files, name)
        for key in SPECIAL_TOKENS:
            if key in reader.data and key not in found:
                found[key] = _token_text(reader, key) if reader.has(key) else None
    return found


class TextTokenizer:
    """The tokenizer of a checkpoint or artifact, built from its side files (name -> bytes).

    `config` is the model's config.json, asked last for the ids of BOS and EOS: in the Qwen
    distills its bos_token_id is wrong. The ids of a vocabulary's padding decode to nothing.

    Attributes:
        special_tokens: name (bos_token, eos_token, …) -> text, as chat templates want them.
        bos_id: None when the model has none.
        stop_ids: every id that ends a text.

    Raises:
        InputError: a file is missing or broken, or names a token that tokenizer.json lacks.
    """

    def __init__(
        self, side_files: Mapping[str, bytes], config: Mapping[str, Any] | None = None
    ) -> None:
        if TOKENIZER not in side_files:
            raise InputError(
                f"{TOKENIZER}: missing", "copy it from the original model, or pass tokens, not text"
            )
        self._tokenizer = open_tokenizer(side_files[TOKENIZER])
        settings = read_side_file(side_files, "tokenizer_config.json")
        named = _special_tokens(side_files)
        with library_failures("cannot add tokens"):
            older = read_side_file(side_files, "added_tokens.json")
            add_tokens(self._tokenizer, settings, older, self._known_here(named))
            splits = settings.boolean("split_special_tokens", False)
            self._tokenizer.encode_special_tokens = splits
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token for token, mark in added.items() if mark.special)
        generation = read_side_file(side_files, "generation_config.json")
        model = ConfigReader(config or {}, "config.json")
        ids: dict[str, tuple[int, ...]] = {}
        for key in ("bos_token", "eos_token"):
            ids[key] = generation.token_ids(f"{key}_id") or model.token_ids(f"{key}_id")
            if key not in named and ids[key]:
                mark = added.get(ids[key][0])
                named[key] = mark.content if mark else self._tokenizer.id_to_token(ids[key][0])
        self.special_tokens: dict[str, str] = {
            key: text for key, text in named.items() if text is not None
        }
        self.bos_id = self._special_id("bos_token")
        eos_id = self._special_id("eos_token")
        ends = ids["eos_token"] if eos_id is None else (*ids["eos_token"], eos_id)
        self.stop_ids = tuple(dict.fromkeys(ends))
        self._says_add_bos = settings.boolean("add_bos_token", False)
        self._adds_bos = (
            self._says_add_bos if settings.has("add_bos_token") else self._post_processor_adds_bos()
        )

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone; special tokens written in it are recognised.

        Raises:
            UsageError: the text holds half a surrogate pair, which no tokenizer takes.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text is not valid Unicode at character {error.start}",
                "pass it in UTF-8, in a UTF-8 locale",
            ) from error
        return list(self._encoding(text).ids)

    def _encoding(self, text: str) -> Any:
        with library_failures("cannot encode"):
            return self._tokenizer.encode(text, add_special_tokens=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a plain prompt, with BOS exactly once where the model was trained with it."""
        return self._with_bos(self.encode(text), self._adds_bos)

    def prompt_places(self, text: str) -> list[int]:
        """Where in the text each token of `encode_prompt` begins, in characters.

        Some tokenizers leave the white space in front of a token out of its offsets; it is a part
        of the token.
        """
        encoding = self._encoding(text)
        starts, end = [], 0
        for start, stop in encoding.offsets:
            starts.append(min(start, end))
            end = max(end, stop)
        ids = self._with_bos(list(encoding.ids), self._adds_bos)
        added = len(ids) - len(starts)
        return [0] * added + starts[max(0, -added) :]

    def encode_chat(self, rendered: str) -> list[int]:
        """Ids of a rendered chat template, which usually has written BOS itself."""
        return self._with_bos(self.encode(rendered), self._says_add_bos)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text; special tokens are left out, marks such as `<think>` are none and stay."""
        # Not left to the library, which overlooks marks that its normalizer changes.
        shown = [token for token in ids if not skip_special or token not in self._special_ids]
        with library_failures("cannot decode"):
            text: str = self._tokenizer.decode(shown, skip_special_tokens=False)
            return text

    def tokens(self) -> dict[str, int]:
        """Every token, added ones too, and its number."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return found

    def piece(self, token: int) -> str | None:
        """How the vocabulary writes a token; None for an id that it does not have."""
        found: str | None = self._tokenizer.id_to_token(token)
        return found

    def to_json(self) -> str:
        """As tokenizer.json, with the tokens that the other files add."""
        with library_failures("cannot write"):
            return str(self._tokenizer.to_str())

    def _known_here(self, named: Mapping[str, str | None]) -> list[str]:
        """The texts of special tokens. A beginning or end that tokenizer.json does not have is not
        added: the model has not learned it (`_special_id` refuses)."""
        return [
            text
            for key, text in named.items()
            if text
            and (
                key not in ("bos_token", "eos_token")
                or self._tokenizer.token_to_id(text) is not None
            )
        ]

    def _special_id(self, key: str) -> int | None:
        if key not in self.special_tokens:
            return None
        found: int | None = self._tokenizer.token_to_id(self.special_tokens[key])
        if found is None:
            raise InputError(
                f"{key} {self.special_tokens[key]!r} is not in {TOKENIZER}",
                "the tokenizer files belong to different models; download them again",
            )
        return found

    def _post_processor_adds_bos(self) -> bool:
        with library_failures("cannot encode"):
            ids = self._tokenizer.encode("", add_special_tokens=True).ids
        return self.bos_id is not None and ids[:1] == [self.bos_id]

    def _with_bos(self, ids: list[int], add: bool) -> list[int]:
        if self.bos_id is None:
            return ids
        count = next((i for i, token in enumerate(ids) if token != self.bos_id), len(ids))
        return [self.bos_id] * (add or count > 0) + ids[count:]


class StreamDecoder:
    """Turns tokens into text one by one, in constant time each.

    The pieces join to the text of `decode`; a character spread over tokens comes with its last.
    `context`: the tokens before the first, so that its space is kept.
    """

    def __init__(
        self, tokenizer: TextTokenizer, context: Sequence[int] = (), skip_special: bool = True
    ) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._before = list(context[-CONTEXT_TOKENS:])  # printed, decides how the next look
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Take a token; the text that is complete by now, which may be empty."""
        self._pending.append(token)
        piece = self._pending_text()
        wait = not piece or piece.endswith(REPLACEMENT)
        if wait and len(self._pending) < MAX_PENDING_TOKENS:
            return ""
        return self._release(piece)

    def finish(self) -> str:
        """The text held back, incomplete as it is."""
        return self._release(self._pending_text())

    def _pending_text(self) -> str:
        return self._text_of(len(self._pending))

    def _text_of(self, count: int) -> str:
        """Of the first tokens that wait."""
        decode, skip = self._tokenizer.decode, self._skip_special
        before = decode(self._before, skip)
        return decode([*self._before, *self._pending[:count]], skip)[len(before) :]

    def _release(self, piece: str) -> str:
        if piece:  # tokens without text must not displace those that decide about spaces
            self._before = self._pending
        self._pending = []
        return piece


def tokenizer_remarks(side_files: Mapping[str, bytes]) -> tuple[str, ...]:
    """A sentence for each setting of the tokenizer that is known and not applied."""
    reader = read_side_file(side_files, "tokenizer_config.json")
    return tuple(
        f"{reader.where}: {key} = {str(reader.data[key])[:60]} is not applied: {known.why}"
        for key, known in TOKENIZER_KEYS.items()
        if known.use is Use.NAMED and known.asks(reader.data.get(key))
    )
