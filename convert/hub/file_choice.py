"""Which files of a model are worth fetching: one set of weights, and what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from dsconv.convert.checkpoint.checkpoint import CONFIG
from dsconv.convert.checkpoint.tensors import read_weight_map
from dsconv.convert.checkpoint.weight_files import (
    ADAPTER_CONFIG,
    MERGE_FIRST,
    SUFFIX,
    choose_weight_files,
    index_of,
)
from dsconv.errors import DownloadError, UnsupportedError

from .listing import Listing, RemoteFile, find
from .name_checks import check_file_names

NEEDED = ("*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "LICENSE")
NOT_NEEDED = ("*/*", "*consolidated*")


def side_files(listing: Listing, patterns: Sequence[str] = NEEDED) -> tuple[RemoteFile, ...]:
    """Everything but the weights; small.

    Raises:
        DownloadError: two of them collide.
    """
    files = tuple(
        file
        for file in listing.files
        if any(fnmatch(file.name, pattern) for pattern in patterns)
        and not any(fnmatch(file.name, pattern) for pattern in NOT_NEEDED)
    )
    check_file_names((file.name for file in files), str(listing.reference))
    return files


def weights(listing: Listing, folder: Path) -> tuple[RemoteFile, ...]:
    """The shards that the index names (`folder` holds it already), or all there are without one.

    Raises:
        DownloadError: the index names what the hub does not have, or names collide.
        InputError: the index is damaged, or there is no whole set.
    """
    model = str(listing.reference)
    names = [file.name for file in listing.files]
    index = index_of(names)
    weight_map = read_weight_map(folder / index) if index else None
    chosen = choose_weight_files(model, names, weight_map)
    found = tuple(file for file in listing.files if file.name in chosen.files)
    missing = sorted(set(chosen.files) - {file.name for file in found})
    if missing:
        raise DownloadError(
            f"{model}: {index} names {missing[0]!r}, which the hub does not have",
            "choose another revision",
        )
    check_file_names((file.name for file in found), model)
    return found


def refuse_without_weights(listing: Listing) -> None:
    """Before anything is fetched.

    Raises:
        UnsupportedError: no safetensors files, or those of an adapter only.
        InputError: not one whole set of them.
    """
    model, names = str(listing.reference), [file.name for file in listing.files]
    if index_of(names) is not None:
        return
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs and not any(name.endswith(SUFFIX) and "/" not in name for name in names):
        raise UnsupportedError(
            f"{model}: no safetensors files, {len(ggufs)} GGUF files",
            f"choose one of them, e.g. hf://{model}/{ggufs[0]}",
        )
    if ADAPTER_CONFIG in names and CONFIG not in names:
        raise UnsupportedError(f"{model}: holds an adapter and no model", MERGE_FIRST)
    choose_weight_files(model, names)


def one_file(listing: Listing, name: str) -> RemoteFile:
    """Raises DownloadError when the model has no such file."""
    found = find(listing.files, name)
    if found is None:
        there = [file.name for file in listing.files if file.name.endswith(".gguf")]
        hint = f"it has {', '.join(there[:8])}" if there else "it has no GGUF files"
        raise DownloadError(f"{listing.reference}: no file {name}", hint)
    check_file_names([name], str(listing.reference))
    return found
