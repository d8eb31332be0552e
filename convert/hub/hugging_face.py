"""The Hugging Face hub, or a mirror of it (HF_ENDPOINT): listing by huggingface_hub itself."""

from __future__ import annotations

from urllib.parse import quote

from dsconv.errors import DownloadError, InputError

from .endpoint import checked_endpoint
from .listing import Listing, RemoteFile, checked_listing
from .messages import MIRROR, Refused, Unreachable, refusal, retry_after
from .model_name import ModelReference

# Of the HTTP library that huggingface_hub uses; which one depends on its version.
TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class HuggingFace:
    """A catalogue (see `catalogue.Catalogue`)."""

    def __init__(self) -> None:
        from huggingface_hub import constants, get_token

        self.endpoint = checked_endpoint("HF_ENDPOINT", constants.ENDPOINT)
        self._is_offline = constants.HF_HUB_OFFLINE
        self.token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()

    def list(self, reference: ModelReference) -> Listing:
        from huggingface_hub import HfApi

        try:
            found = HfApi(endpoint=self.endpoint, library_name="dsconv").model_info(
                reference.name, revision=reference.revision, files_metadata=True, timeout=30
            )
        except Exception as error:
            raise _translated(error, str(reference)) from error
        return checked_listing(
            reference,
            found.sha,
            (
                (file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
                for file in found.siblings or ()
            ),
        )

    def url(self, listing: Listing, file: RemoteFile) -> str:
        if self._is_offline:
            message = f"{listing.reference}: {file.name} is not in the cache, or damaged"
            raise Unreachable(f"{message}, and HF_HUB_OFFLINE is set", "unset it")
        name = quote(file.name)
        return f"{self.endpoint}/{listing.reference.name}/resolve/{listing.commit}/{name}"


def _translated(error: Exception, model: str) -> Exception:
    """Of what the hub's library raises."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, HFValidationError):
        return InputError(
            f"{model}: neither a file or folder nor a hub name: {first_line}",
            "use a folder, a .gguf file, or a hub name (org/model)",
        )
    if isinstance(error, GatedRepoError):
        return Refused(
            f"{model}: this model asks for its conditions to be accepted",
            "accept them on the model's page, then set HF_TOKEN to a token of that account",
        )
    if isinstance(error, RevisionNotFoundError):
        return Refused(f"{model}: no such revision", "use a branch, a tag or a commit of it")
    if isinstance(error, RepositoryNotFoundError):
        return Refused(
            f"{model}: no such model, or a private one",
            "check the name; HF_TOKEN grants access to private models",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return Unreachable(f"{model}: HF_HUB_OFFLINE is set", "unset it, or fill the cache before")
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        message = f"{model}: cannot ask the hub: status {status}"
        if status in (408, 425, 429) or status >= 500:
            return Unreachable(message, MIRROR, True, retry_after(error.response.headers))
        return refusal(status, model, "asking the hub")
    library = type(error).__module__.split(".")[0]
    if library in TRANSPORTS or isinstance(error, OSError):
        name = type(error).__name__
        is_transient = "Connect" not in name  # no network: the cache may help, waiting will not
        return Unreachable(f"{model}: cannot reach the hub: {name}", MIRROR, is_transient)
    if isinstance(error, (ValueError, TypeError, KeyError, AttributeError)):
        return DownloadError(
            f"{model}: the hub's answer makes no sense: {type(error).__name__}: {first_line}",
            MIRROR,
        )
    return error
