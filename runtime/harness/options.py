"""What a user of a harness says about the model: the artifact, and how it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dsconv.errors import UsageError, choose
from dsconv.runtime.batches.open import ACTIVATIONS, BatchOptions
from dsconv.runtime.console import parse_size
from dsconv.runtime.sessions.load import (
    DEFAULT_CACHE,
    Loaded,
    is_native_file,
    is_onnx_artifact,
    load,
)

ALIASES = {"pretrained": "path", "model": "path"}  # as other back ends say
DTYPE = "float32"
EXACT_CACHE = "fp32"
HARNESS_DEVICE = "cuda:0"  # of lm-evaluation-harness where --device is not given
Reader = Callable[[str, Any], Any]  # of a value, told its name


@dataclass(frozen=True)
class HarnessOptions:
    """The names are those of `dsconv run`, or of the back end `hf` of lm-evaluation-harness.

    cache: bytes for keys and values; 0 is a share of what is free. sequences: at once, at most; 0
    leaves that to the memory. max_length: 0 is the model's context. add_bos_token: None is what
    the tokenizer's files say. seed: of the first text that is drawn; the next ones count up.
    """

    path: str
    provider: str = "cpu"
    threads: int = 0
    dtype: str = ""
    kv: str = ""
    allow_fallback: bool = False
    activations: str = ""
    cache: int = 0
    sequences: int = 0
    max_length: int = 0
    max_gen_toks: int = 256
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    think_end_token: str | int | None = None
    enable_thinking: bool | None = None
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.enable_thinking and self.think_end_token is None:
            raise UsageError(
                "enable_thinking without think_end_token: thoughts would be judged as answers",
                "add think_end_token=</think>, or what the model ends its thoughts with",
            )
        path = Path(self.path).expanduser()
        native = is_native_file(path)
        if self.dtype and (native or is_onnx_artifact(path)):
            raise UsageError(
                f"dtype={self.dtype}: {self.path} is no checkpoint, its numbers are fixed",
                "leave out dtype",
            )
        if self.activations and not native:
            raise UsageError(
                f"activations={self.activations}: {self.path} is no native file",
                "leave out activations",
            )

    def batch_options(self) -> BatchOptions:
        return BatchOptions(self.sequences, self.cache, self.activations or ACTIVATIONS)

    def load(self) -> Loaded:
        return load(
            *(self.path, self.provider, self.threads, self.dtype or DTYPE),
            *(self.cache_type, self.allow_fallback),
        )

    @property
    def cache_type(self) -> str:
        """A native file's keys and values are not rounded, unless the user asks for it: so
        log-likelihoods are those of other programs."""
        exact = EXACT_CACHE if is_native_file(Path(self.path).expanduser()) else DEFAULT_CACHE
        return self.kv or exact

    @property
    def template_variables(self) -> dict[str, Any]:
        """Beside those that every chat template gets."""
        if self.enable_thinking is None:
            return dict(self.chat_template_args)
        return {**self.chat_template_args, "enable_thinking": self.enable_thinking}


def read_options(
    given: Mapping[str, Any], batch_size: str | int | None = None, device: str | None = None
) -> HarnessOptions:
    """Options as a harness passes them on: words, or numbers where they look like some.

    Args:
        batch_size: the harness' own option. 1 is its default, which nobody may have asked for, and
            `auto` asks for a choice: both leave it to the memory.
        device: the same, and its default is the first GPU, whatever the machine has.

    Raises:
        UsageError: an option that is not known, or a value that it does not take.
    """
    values = {name: value for name, value in given.items() if value is not None}
    for alias, name in ALIASES.items():
        if alias in values and name in values:
            raise UsageError(f"{alias} and {name} are the same", f"give {name} only")
        if alias in values:
            values[name] = values.pop(alias)
    if values.pop("trust_remote_code", False) not in (False, "False", "false"):
        raise UsageError("trust_remote_code: no code of a model is ever run", "leave it out")
    if device not in (None, HARNESS_DEVICE, values.get("provider", "cpu")):
        raise UsageError(
            f"--device {device}: the provider decides where a model runs",
            "leave it out, and add provider=NAME to the model's arguments",
        )
    known = [entry.name for entry in fields(HarnessOptions)]
    for name in values:
        if name not in known:
            raise UsageError(f"the model argument {name!r} is not known", choose(name, known))
    if "path" not in values:
        raise UsageError("no artifact is named", "add path=ARTIFACT to the model's arguments")
    read: dict[str, Any] = {}
    for name, value in values.items():
        reader: Reader = READERS.get(name, _as_text)
        read[name] = reader(name, value)
    read.setdefault("sequences", _sequences(batch_size))
    return HarnessOptions(**read)


def _sequences(batch_size: str | int | None) -> int:
    word = "auto" if batch_size is None else str(batch_size)
    if word.partition(":")[0] == "auto":
        return 0
    count = _as_count("batch_size", word)
    return 0 if count == 1 else count


def _as_text(name: str, value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise UsageError(f"{name}={value!r} is not a word", "give one word")
    return str(value)


def _as_count(name: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise UsageError(f"{name}={value} is not a whole number from 0 on", "give a number")
    return number


def _as_size(name: str, value: Any) -> int:
    return parse_size(str(value))


def _as_flag(name: str, value: Any) -> bool:
    flags = {"true": True, "false": False}
    if str(value).lower() not in flags:
        raise UsageError(f"{name}={value} is neither True nor False", "give one of the two")
    return flags[str(value).lower()]


def _as_mark(name: str, value: Any) -> str | int:
    """The text of a token, or its number."""
    return int(value) if str(value).isdigit() else _as_text(name, value)


def _as_variables(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}={value} is not an object", 'give as {"name": value}')
    return value


READERS: Mapping[str, Reader] = {
    "threads": _as_count,
    "allow_fallback": _as_flag,
    "cache": _as_size,
    "sequences": _as_count,
    "max_length": _as_count,
    "max_gen_toks": _as_count,
    "add_bos_token": _as_flag,
    "prefix_token_id": _as_count,
    "think_end_token": _as_mark,
    "enable_thinking": _as_flag,
    "chat_template_args": _as_variables,
    "seed": _as_count,
}
