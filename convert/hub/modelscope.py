"""ModelScope, by its public HTTP API. Every file is listed with its sha256."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, urlencode

from dsconv.convert.files.json_file import parse_json
from dsconv.errors import DownloadError, DsconvError

from .client import TRANSIENT, Client
from .endpoint import checked_endpoint
from .listing import Listing, RemoteFile, checked_listing
from .messages import Refused, Unreachable, refusal
from .model_name import ModelReference
from .name_checks import COMMIT
from .stores import default_revision

DOMAIN = "MODELSCOPE_DOMAIN"
HOST = "www.modelscope.cn"
MAX_ANSWER_BYTES = 64 << 20
TIMEOUT = 30.0
SHORTEST = 7  # digits of a shortened commit
CURE = "check the name and the network; MODELSCOPE_ENDPOINT (or MODELSCOPE_DOMAIN) chooses a host"


class ModelScope:
    """A catalogue (see `catalogue.Catalogue`).

    MODELSCOPE_ENDPOINT is a URL; MODELSCOPE_DOMAIN, ModelScope's own variable, a host name.
    """

    def __init__(self) -> None:
        domain = os.environ.get(DOMAIN) or HOST
        variable = "MODELSCOPE_ENDPOINT" if os.environ.get("MODELSCOPE_ENDPOINT") else DOMAIN
        address = domain if "://" in domain else f"https://{domain}"
        self.endpoint = checked_endpoint(variable, os.environ.get("MODELSCOPE_ENDPOINT") or address)
        self.token = os.environ.get("MODELSCOPE_API_TOKEN") or None

    def list(self, reference: ModelReference) -> Listing:
        asked = reference.revision or default_revision(reference)
        found = self._ask(reference, "/repo/files", {"Revision": asked, "Recursive": "True"})
        commit = reference.commit or _commit_of(found)
        if commit is None:
            raise Refused(
                f"{reference}: the answer names no commit", "use a commit: org/model@COMMIT"
            )
        if commit != asked:  # what was pushed between the two answers must not be mixed in
            found = self._ask(reference, "/repo/files", {"Revision": commit, "Recursive": "True"})
        entries = found.get("Files")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise Refused(f"{reference}: the answer lists no files", CURE)
        files = [entry for entry in entries if entry.get("Type") != "tree"]
        return checked_listing(
            reference,
            commit,
            ((entry.get("Path"), entry.get("Size"), entry.get("Sha256"), None) for entry in files),
        )

    def url(self, listing: Listing, file: RemoteFile) -> str:
        query = urlencode({"Revision": listing.commit, "FilePath": file.name}, quote_via=quote)
        return f"{self.endpoint}/api/v1/models/{listing.reference.name}/repo?{query}"

    def _ask(self, reference: ModelReference, path: str, query: dict[str, str]) -> dict[str, Any]:
        """The `Data` of an answer."""
        url = f"{self.endpoint}/api/v1/models/{reference.name}{path}?{urlencode(query)}"
        client = Client(self.endpoint, self.token, TIMEOUT)
        try:
            response = client.get(url, {"Accept": "application/json"})
            body = response.raw.read(MAX_ANSWER_BYTES)
        except TRANSIENT as error:
            is_transient = not isinstance(error, ConnectionRefusedError)
            raise Unreachable(
                f"{reference}: cannot reach ModelScope: {type(error).__name__}", CURE, is_transient
            ) from error
        finally:
            client.close()
        if response.status in (408, 425, 429) or response.status >= 500:
            raise Unreachable(
                f"{reference}: cannot ask ModelScope: status {response.status}",
                CURE,
                True,
                response.retry_after,
            )
        if response.status != 200:
            raise refusal(response.status, str(reference), "asking ModelScope")
        try:
            content = parse_json(body, url)
        except DsconvError as error:
            raise DownloadError(f"{reference}: ModelScope's answer is no JSON", CURE) from error
        data = content.get("Data") if isinstance(content, dict) else None
        if not isinstance(data, dict):
            message = content.get("Message") if isinstance(content, dict) else None
            raise Refused(f"{reference}: ModelScope: {str(message or 'no data')[:200]}", CURE)
        return data


def _commit_of(data: dict[str, Any]) -> str | None:
    """The latest commit of the revision that was asked for.

    Some answers leave it out or shorten it; every file names the commit that changed it last.
    """
    latest = data.get("LatestCommitter")
    latest = latest if isinstance(latest, dict) else {}
    found = latest.get("Id")
    if _is_commit(found):
        return str(found)
    files = data.get("Files")
    files = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    changes = {
        entry["Revision"]: entry.get("CommittedDate") or 0
        for entry in files
        if _is_commit(entry.get("Revision")) and isinstance(entry.get("CommittedDate") or 0, int)
    }
    short = latest.get("ShortId")
    if isinstance(short, str) and len(short) >= SHORTEST:
        return next((commit for commit in changes if commit.startswith(short)), None)
    return max(changes, key=lambda commit: (changes[commit], commit), default=None)


def _is_commit(value: object) -> bool:
    return isinstance(value, str) and COMMIT.fullmatch(value) is not None
