"""Which files of a folder are its weights: the same choice for a folder and for a hub's listing.

People have more in a folder than one checkpoint: the same weights in another layout
(`consolidated.safetensors`), in another precision (`model.fp16.safetensors`), adapters, the state
of a training run, an index of shards that were joined since. What transformers would read is
read, and what is left aside is named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dsconv.errors import InputError, UnsupportedError

SUFFIX = ".safetensors"
ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_"
ADAPTER_CONFIG = "adapter_config.json"
# Formats that run code when they are opened, or (.npz) may.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npz", ".npy")
UNFINISHED = (".incomplete", ".part", ".aria2", ".crdownload", ".download", ".tmp")
# Never the weights of a model themselves: the same in Mistral's and Meta's layout, adapters, and
# what trainers keep.
OTHERS = re.compile(
    r"(consolidated|adapter|optimizer|scheduler|rng_state|random_states|training_args)[^/]*$"
)
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})\.safetensors")
VARIANT = re.compile(r"model\.(?P<variant>[\w-]+)\.safetensors")
VARIANT_INDEX = re.compile(r"model\.safetensors\.index\.[\w-]+\.json")
MERGE_FIRST = "merge it into its base model first (merge_and_unload of peft), and use the result"
MANY = 4  # names that a message shows


@dataclass(frozen=True)
class WeightFiles:
    """index: the file that says where each tensor lies; without one, the headers do.

    aside: what lies there too and could be taken for weights.
    """

    files: tuple[str, ...]
    index: str | None = None
    aside: tuple[str, ...] = ()

    def notes(self, where: str) -> tuple[str, ...]:
        """What is left aside, for people."""
        if not self.aside:
            return ()
        return (f"{where}: {_some(self.files)} is read, and not {_some(self.aside)} beside it",)


def index_of(names: Collection[str]) -> str | None:
    """The index of a folder with these files: the usual one, or that of a variant (fp16)."""
    if INDEX in names:
        return INDEX
    variants = sorted(name for name in names if VARIANT_INDEX.fullmatch(name))
    return variants[0] if len(variants) == 1 else None


def choose_weight_files(
    where: str, names: Collection[str], weight_map: Mapping[str, str] | None = None
) -> WeightFiles:
    """Choose among the names of a folder's files; names in folders below it have slashes.

    Args:
        weight_map: what the index says; None where there is none.

    Raises:
        InputError: no weights, or a set of shards with gaps, or more than one set.
        UnsupportedError: only an adapter, only pickle files.
    """
    here = sorted(
        name
        for name in names
        if "/" not in name and (name.endswith(SUFFIX) or name.startswith(ADAPTER))
    )
    shards = tuple(sorted(set(weight_map.values()))) if weight_map else ()
    # As transformers: one whole file is read before an index, which may be of an earlier save.
    if ONE_FILE in here and ONE_FILE not in shards:
        return WeightFiles((ONE_FILE,), None, _aside(here, {ONE_FILE}))
    if shards:
        return WeightFiles(shards, index_of(names), _aside(here, set(shards)))
    candidates = [name for name in here if not OTHERS.match(name)]
    plain = [name for name in candidates if not VARIANT.fullmatch(name)]
    candidates = plain or candidates
    if not candidates:
        raise _no_weights(where, names)
    if not plain and len(candidates) > 1:
        raise InputError(
            f"{where}: {len(candidates)} variants of the weights: {_some(candidates)}",
            f"rename the one that you mean to {ONE_FILE}",
        )
    files = _one_set(where, candidates)
    return WeightFiles(files, None, _aside(here, set(files)))


def _aside(here: list[str], taken: set[str]) -> tuple[str, ...]:
    return tuple(name for name in here if name not in taken)


def _one_set(where: str, candidates: list[str]) -> tuple[str, ...]:
    """All of them where they can be one checkpoint: shards that are all there, or loose files."""
    sets: dict[tuple[str, int], set[int]] = {}
    names: dict[tuple[str, int], list[str]] = {}
    for name in candidates:
        found = SHARD.fullmatch(name)
        if found is not None:
            key = found["stem"], int(found["count"])
            sets.setdefault(key, set()).add(int(found["number"]))
            names.setdefault(key, []).append(name)
    if not sets:
        return tuple(candidates)
    if len(sets) > 1:
        firsts = [members[0] for members in names.values()]
        raise InputError(
            f"{where}: {len(sets)} sets of shards and no {INDEX}: {_some(firsts)}",
            "keep one set in a folder, or download the index of the one that you mean",
        )
    ((stem, count), numbers) = next(iter(sets.items()))
    missing = [number for number in range(1, count + 1) if number not in numbers]
    if missing:
        raise InputError(
            f"{where}: {len(numbers)} of {count} shards are there, number "
            f"{', '.join(map(str, missing[:MANY]))}{' …' if len(missing) > MANY else ''} of "
            f"{stem}-…-of-{count:05}{SUFFIX} is missing",
            "the download is incomplete; download the checkpoint again",
        )
    return tuple(names[stem, count])


def _some(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:MANY]) + (" …" if len(shown) > MANY else "")


def _no_weights(where: str, names: Collection[str]) -> Exception:
    here = sorted(name for name in names if "/" not in name)
    adapters = [name for name in here if name.startswith(ADAPTER)]
    if adapters:
        return UnsupportedError(
            f"{where}: holds an adapter ({adapters[0]}) and no model", MERGE_FIRST
        )
    unfinished = [name for name in here if name.endswith(UNFINISHED)]
    if unfinished:
        return InputError(
            f"{where}: no {SUFFIX} files, but {unfinished[0]}: a download that was not finished",
            "finish it, or download the model with dsconv pull",
        )
    ggufs = [name for name in here if name.endswith(".gguf")]
    if ggufs:
        return UnsupportedError(
            f"{where}: no {SUFFIX} files, but {len(ggufs)} GGUF: {_some(ggufs)}",
            "use the path of the .gguf file itself",
        )
    others = [name for name in here if name.endswith(SUFFIX)]
    if others:
        return InputError(
            f"{where}: only {_some(others)}, which dsconv does not read: another layout of the "
            "weights, or no weights at all",
            f"download {ONE_FILE}, or the shards with {INDEX}",
        )
    below = sorted(name for name in names if "/" in name and name.endswith(SUFFIX))
    if below:
        return InputError(
            f"{where}: no {SUFFIX} files of its own, but {_some(below)} below it",
            "use the folder that holds them, with its config.json",
        )
    pickles = [name for name in here if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return UnsupportedError(
            f"{where}: only pickle weights ({pickles[0]}), which can run code when opened",
            "use the model's safetensors files, or convert it where you trust it",
        )
    return InputError(f"{where}: no {SUFFIX} files", "check the folder, or download the model")
