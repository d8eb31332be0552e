"""Who lists the files of a model: one interface over the Hugging Face hub and ModelScope."""

from __future__ import annotations

from typing import Protocol

from .hugging_face import HuggingFace
from .listing import Listing, RemoteFile
from .model_name import MODELSCOPE, ModelReference
from .modelscope import ModelScope


class Catalogue(Protocol):
    """One kind of endpoint."""

    endpoint: str
    token: str | None

    def list(self, reference: ModelReference) -> Listing:
        """Pin the commit and list its files.

        Raises:
            DownloadError: no such model or revision, no permission, a hostile answer.
            Unreachable: no answer at all.
        """
        ...

    def url(self, listing: Listing, file: RemoteFile) -> str:
        """Where the body of a file of the pinned commit is."""
        ...


def catalogue_of(reference: ModelReference) -> Catalogue:
    return ModelScope() if reference.source == MODELSCOPE else HuggingFace()
