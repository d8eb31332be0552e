"""The reference's predictions on the disk, so that a second verify never runs it.

An entry's name is a hash of all that decides over its content: the reference's weights (by their
files' sha256), its config, the windows of token ids (text, tokenizer and sizes are in them), the
precision, and the form of what is kept. An entry that is damaged, or is not what its name says, is
as good as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dsconv.atomic import output_file
from dsconv.convert.files.cache_folder import default_folder
from dsconv.errors import OutputError, UsageError

from .kept_logits import SAMPLES, TOP, Condensed, join_condensed
from .metrics import Summary
from .reference import KeptPredictions, Reference, Tokens
from .verdict import NoiseFloor

FORM = 1  # of the entries; another number makes all old ones foreign
DIGEST_LENGTH = 64  # hex characters of sha256, before the container that they are of
CONTENT = "content"  # the tensor that holds what is no array, as JSON

Arrays = dict[str, NDArray[Any]]
_ARRAYS = ("ids", "logits", "normalizer", "tail", "loss")

Report = Callable[[str], None]


def chosen_folder(folder: Path | None, none: bool) -> Path | None:
    """What --reference-cache and --no-reference-cache mean together; None for no cache.

    Raises:
        UsageError: both were given.
    """
    if none and folder:
        raise UsageError(
            "--reference-cache and --no-reference-cache contradict each other", "use one of them"
        )
    return None if none else folder or default_folder()


def tokens_hash(windows: Tokens) -> str:
    """One digest over the token ids of all windows, and where they are cut."""
    return _digest([list(window) for window in windows])


def cache_key(reference: Reference, files: Mapping[str, str], windows: Tokens) -> str:
    """files: name -> sha256 of the reference's weights."""
    return _digest(
        {
            "form": [FORM, TOP, SAMPLES],
            "weights": sorted(files.values()),
            "config": reference.config,
            "precision": reference.precision,
            "tokens": tokens_hash(windows),
        }
    )


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class ReferenceCache:
    """Entries in one folder, which may be deleted at any time."""

    def __init__(self, folder: Path, report: Report = lambda words: None) -> None:
        self._folder = folder / "reference"
        self._report = report

    def path(self, key: str) -> Path:
        return self._folder / f"{key}.predictions"

    def load(self, key: str, windows: Tokens) -> KeptPredictions | None:
        """None where there is no entry that can be trusted."""
        path = self.path(key)
        try:
            return _unpack(path.read_bytes(), key, windows)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            self._report(f"{path}: damaged or foreign ({error}); the reference runs again")
            return None

    def store(self, key: str, predictions: KeptPredictions) -> None:
        """Best effort: a folder that cannot be written is reported, no more."""
        try:
            with output_file(self.path(key), overwrite=True) as partial:
                partial.write_bytes(_pack(key, predictions))
        except (OutputError, OSError) as error:
            self._report(f"the reference's predictions are not kept: {error}")


def _pack(key: str, predictions: KeptPredictions) -> bytes:
    whole, noise = join_condensed(predictions.windows), predictions.noise
    content = {
        "key": key,
        "top": whole.top,
        "noise": noise and {"what": noise.what, "summary": asdict(noise.summary)},
    }
    arrays: Arrays = {name: getattr(whole, name) for name in _ARRAYS}
    arrays[CONTENT] = np.frombuffer(json.dumps(content).encode(), np.uint8)
    container = save(arrays)
    return hashlib.sha256(container).hexdigest().encode() + container


def _unpack(data: bytes, key: str, windows: Tokens) -> KeptPredictions:
    """Raises ValueError, KeyError, TypeError, SafetensorError: it is not what was written here."""
    digest, container = data[:DIGEST_LENGTH], data[DIGEST_LENGTH:]
    if hashlib.sha256(container).hexdigest().encode() != digest:
        raise ValueError("its sha256 differs")
    arrays = load(container)
    content = json.loads(arrays[CONTENT].tobytes())
    if content["key"] != key:
        raise ValueError("it belongs to something else")
    whole = Condensed(**{name: arrays[name] for name in _ARRAYS}, top=content["top"])
    ends = np.cumsum([0, *(len(window) - 1 for window in windows)])
    if len(whole) != ends[-1]:
        raise ValueError(f"{len(whole)} positions instead of {ends[-1]}")
    noise = content["noise"]
    return KeptPredictions(
        windows,
        tuple(whole.rows(slice(a, b)) for a, b in pairwise(ends.tolist())),
        noise and NoiseFloor(noise["what"], Summary(**noise["summary"])),
    )
