"""HTTP with keep-alive, redirects and proxies, whose bodies go straight into a buffer.

The standard library's client: reading into a given buffer is two to four times as fast as what the
libraries above it offer, and which of those is installed depends on the version of huggingface_hub.
"""

from __future__ import annotations

import base64
import http.client
import os
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urljoin, urlsplit

from .messages import Refused, Stopped, retry_after

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
AGENT = "dsconv"

# What a connection may do at any time, and the next attempt may not.
TRANSIENT = (OSError, http.client.HTTPException)


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what a token may be sent to.

    Raises:
        Refused: not a URL of HTTP.
    """
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname or ""
        port = parts.port or (443 if scheme == "https" else 80)
    except ValueError:
        scheme, host, port = "", "", 0
    if scheme not in ("http", "https") or not host:
        raise Refused(f"{url[:80]!r} is no address of HTTP", "HF_ENDPOINT chooses another endpoint")
    return scheme, host, port


@dataclass(frozen=True)
class Response:
    """url: of the one that answered, after all redirects."""

    url: str
    status: int
    raw: http.client.HTTPResponse

    def header(self, name: str) -> str | None:
        return self.raw.getheader(name)

    @property
    def retry_after(self) -> float | None:
        """Seconds."""
        return retry_after(self.raw.headers)


@dataclass(frozen=True)
class _Route:
    """A connection, and what a proxy wants on it: absolute URLs, credentials."""

    connection: http.client.HTTPConnection
    is_absolute: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class Client:
    """Connections of all threads, each its own; `abort` ends what any of them waits for.

    The token goes to the endpoint's own origin and nowhere else, wherever a redirect leads.
    """

    def __init__(self, endpoint: str, token: str | None, timeout: float) -> None:
        self._origin = origin_of(endpoint)
        self._token = token
        self._timeout = timeout
        self._own = threading.local()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._aborted = False
        self._tls: ssl.SSLContext | None = None

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Response:
        """Ask for a URL, follow where it leads. Read or `close` the response before the next.

        Raises:
            OSError, HTTPException: the connection failed (`TRANSIENT`).
            Refused: too many redirects, or to what is not HTTP.
            Stopped: after `abort`.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get_once(url, headers or {})
            location = response.getheader("Location")
            if response.status not in REDIRECTS or location is None:
                return Response(url, response.status, response)
            self.drain(response)
            url = urljoin(url, location)
        raise Refused(
            f"{url[:80]}: more than {MAX_REDIRECTS} redirects", "HF_ENDPOINT chooses a mirror"
        )

    def _get_once(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        origin = origin_of(url)
        own = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
        if self._token and origin == self._origin:
            own["Authorization"] = f"Bearer {self._token}"
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            route, is_fresh = self._route(origin)
            try:
                route.connection.request(
                    "GET", url if route.is_absolute else target, headers={**own, **route.headers}
                )
                return route.connection.getresponse()
            except TRANSIENT as error:
                self.close()
                if self._aborted:
                    raise Stopped from error
                # A kept connection that the server has closed meanwhile says nothing about it.
                if is_fresh or isinstance(error, TimeoutError):
                    raise

    def _route(self, origin: tuple[str, str, int]) -> tuple[_Route, bool]:
        """-> (this thread's way to the origin, whether it is new)."""
        kept: dict[tuple[str, str, int], _Route] = self._own.__dict__.setdefault("kept", {})
        if self._aborted:
            raise Stopped
        if origin in kept:
            return kept[origin], False
        route = self._new_route(*origin)
        route.connection.connect()
        kept[origin] = route
        with self._lock:
            self._open.add(route.connection)
        return route, True

    def _new_route(self, scheme: str, host: str, port: int) -> _Route:
        """Direct, or through the proxy that the environment names."""
        proxy = urllib.request.getproxies().get(scheme)
        if not proxy or urllib.request.proxy_bypass(host):
            return _Route(self._plain(scheme, host, port))
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        _, proxy_host, proxy_port = origin_of(proxy)
        headers = _proxy_credentials(proxy)
        connection = self._plain(scheme, proxy_host, proxy_port)
        if scheme == "http":
            return _Route(connection, True, headers)
        connection.set_tunnel(host, port, headers=headers)
        return _Route(connection)

    def _plain(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout)
        with self._lock:
            self._tls = self._tls or _tls_context()
        return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)

    def drain(self, response: http.client.HTTPResponse) -> None:
        """Read the rest of a short body so that the connection can be used again."""
        if response.length is not None and response.length <= 1 << 16:
            with suppress(*TRANSIENT):
                response.read()
                return
        self.close()

    def close(self) -> None:
        """End this thread's connections."""
        kept: dict[tuple[str, str, int], _Route] = self._own.__dict__.pop("kept", {})
        with self._lock:
            self._open -= {route.connection for route in kept.values()}
        for route in kept.values():
            route.connection.close()

    def abort(self) -> None:
        """End everybody's; whoever waits for a byte gets an error at once."""
        self._aborted = True
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(2)


def _proxy_credentials(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _tls_context() -> ssl.SSLContext:
    """The system's certificates, those of certifi, and those that the environment names."""
    context = ssl.create_default_context()
    given = next((os.environ[name] for name in CERTIFICATES if os.environ.get(name)), None)
    if given is not None:
        context.load_verify_locations(cafile=given)
        return context
    with suppress(ImportError):  # comes with huggingface_hub; some systems have none of their own
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    return context
