"""The address of an endpoint, as the environment says it, looked at before it is asked.

A missing scheme would else be a connection that fails, many times, for a reason that no user sees.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from dsconv.errors import DownloadError

BEFORE_HOST = re.compile(r"^[\"']?(\w+:?/+|//)?")
ODD = re.compile(r"[\s\"'<>\\]")


def checked_endpoint(variable: str, value: str) -> str:
    """The address without spaces around it or slashes behind it; a path stays, as proxies have one.

    Raises:
        DownloadError: not an address of HTTP, naming the variable.
    """
    text = value.strip().rstrip("/")
    problem = _problem(text)
    if problem is not None:
        likely = ODD.sub("", BEFORE_HOST.sub("", text)).partition("?")[0] or "huggingface.co"
        raise DownloadError(
            f"{variable}={value[:200]!r}: {problem}", f"set {variable}=https://{likely}"
        )
    return text


def _problem(text: str) -> str | None:
    if not text:
        return "empty"
    odd = ODD.search(text)
    if odd:
        return f"the character {odd[0]!r} in an address"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # both look at what is there
    except ValueError as error:
        return f"no address: {error}"
    if "://" not in text:
        return "lacks https:// before the host"
    if parts.scheme.lower() not in ("http", "https"):
        return f"scheme {parts.scheme!r}, expected https"
    if not host:
        return "no host"
    if parts.query or parts.fragment:
        return "more than an address: something after ? or #"
    return None
