"""Which files of a model are worth fetching: one set of weights, and what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from dsconv.convert.checkpoint.tensors import INDEX
from dsconv.convert.files.json_file import read_json_object
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
        InputError: the index is damaged.
    """
    model = str(listing.reference)
    index = find(listing.files, INDEX)
    if index is None:
        found = _safetensors(listing)
    else:
        named = read_json_object(folder / INDEX).get("weight_map")
        if not isinstance(named, dict):
            named = {}
        shards = sorted({str(shard) for shard in named.values()})
        found = tuple(file for file in listing.files if file.name in shards)
        missing = sorted(set(shards) - {file.name for file in found})
        if missing or not found:
            what = f"{missing[0]!r}, which the hub does not have" if missing else "no files"
            raise DownloadError(f"{model}: {INDEX} names {what}", "choose another revision")
    check_file_names((file.name for file in found), model)
    return found


def _safetensors(listing: Listing) -> tuple[RemoteFile, ...]:
    return tuple(
        file
        for file in listing.files
        if file.name.endswith(".safetensors")
        and not any(fnmatch(file.name, pattern) for pattern in NOT_NEEDED)
    )


def refuse_without_weights(listing: Listing) -> None:
    """Before anything is fetched.

    Raises:
        UnsupportedError: no safetensors files.
    """
    if _safetensors(listing):
        return
    model = listing.reference
    ggufs = [file.name for file in listing.files if file.name.endswith(".gguf")]
    if ggufs:
        raise UnsupportedError(
            f"{model}: no safetensors files, {len(ggufs)} GGUF files",
            f"choose one of them, e.g. hf://{model}/{ggufs[0]}",
        )
    raise UnsupportedError(
        f"{model}: no safetensors files (pickle files can run code and are not fetched)",
        "choose a model that has them",
    )


def one_file(listing: Listing, name: str) -> RemoteFile:
    """Raises DownloadError when the model has no such file."""
    found = find(listing.files, name)
    if found is None:
        there = [file.name for file in listing.files if file.name.endswith(".gguf")]
        hint = f"it has {', '.join(there[:8])}" if there else "it has no GGUF files"
        raise DownloadError(f"{listing.reference}: no file {name}", hint)
    check_file_names([name], str(listing.reference))
    return found
