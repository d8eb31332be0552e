"""Routes, who may ask, and errors: the ASGI application."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsconv.errors import DsconvError
from dsconv.runtime.console import detail, say
from dsconv.runtime.generate.drafted_batch import DraftedBatch
from dsconv.runtime.memory import resident_bytes

from .answers import EventStream, Texts, json_response, read_object, while_connected
from .chat import chat_events, read_chat, whole_chat
from .completions import completion_events, read_completion, whole_completion
from .engine import Engine, QueueFull
from .metrics import Metrics
from .problems import ClientGone, Problem, problem_of
from .served import Served

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/")
OPEN_PATHS = ("/health", "/")  # without a key: they tell nothing
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
RETRY = {"retry-after": "1"}
BUSY = {**RETRY, "connection": "close"}  # what is left of the body is not read
GONE = 499  # nobody reads it
BODIES = 8  # of the largest size, that bodies may take together while they arrive


@dataclass(frozen=True)
class Access:
    """key: None lets everybody in. only_local: names of this machine are the only hosts, so that
    no page of the web reaches the server under a name of its own. origins: pages of others that
    browsers may use it from."""

    key: str | None = None
    only_local: bool = True
    origins: tuple[str, ...] = ()


class Service:
    """What requests are answered with."""

    def __init__(self, served: Served, engine: Engine, metrics: Metrics, access: Access) -> None:
        self.served, self.engine, self.metrics, self.access = served, engine, metrics, access
        self.draining = False
        self._reading = 0  # bytes of bodies

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self.served.to_json()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.served.name:
            raise Problem(404, f"model {name[:200]!r} is not here", "model", "model_not_found")
        return json_response(self.served.to_json())

    async def health(self, request: Request) -> Response:
        if self.draining:
            return json_response({"status": "draining"}, 503)
        if not self.engine.is_alive:
            return json_response({"status": "the engine has ended"}, 503)
        return json_response({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        batch, engine = self.engine.batch, self.engine
        guesses: dict[str, tuple[str, float]] = {}
        if isinstance(batch, DraftedBatch):
            guesses = {
                "guesses_proposed": ("tokens that the draft guessed", batch.proposed),
                "guesses_accepted": ("of them taken", batch.accepted),
            }
        text = self.metrics.text(
            {
                **guesses,
                "texts_running": ("texts in the batch", engine.running),
                "texts_waiting": ("texts that wait", max(0, engine.open - engine.running)),
                "cache_positions": ("tokens that the cache holds", batch.capacity),
                "cache_positions_free": ("of them free", batch.free_positions),
                "resident_bytes": ("memory of the process", resident_bytes()),
            }
        )
        return Response(text, media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        headers = {
            "content-security-policy": self._page_policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }
        return Response(self._page, media_type="text/html", headers=headers)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, read_completion, whole_completion, completion_events)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, read_chat, whole_chat, chat_events)

    async def _answer(self, request: Request, read: Any, whole: Any, stream: Any) -> Response:
        """The same for both interfaces: read, submit, write."""
        if self.draining:
            raise Problem(503, "the server is ending", headers=RETRY)
        data = await self._body(request)
        asked = await asyncio.to_thread(read, data, self.served)
        texts = Texts(self.engine, self._submit(asked.plans()))
        if not asked.settings.stream:
            try:
                made = await while_connected(request.receive, whole(asked, self.served, texts))
                return await asyncio.to_thread(json_response, made)
            finally:
                texts.close()
        pieces: AsyncIterator[bytes] = stream(asked, self.served, texts)
        try:
            first = await while_connected(request.receive, _next(pieces))
        except BaseException:
            texts.close()
            raise
        return EventStream(first, pieces, self.report, texts.close)

    async def _body(self, request: Request) -> Any:
        limits = self.served.limits
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self._reading + count > BODIES * limits.body_bytes:
                raise Problem(429, "too many large requests at the same time", headers=BUSY)
            taken += count
            self._reading += count

        try:
            return await read_object(request, limits.body_bytes, limits.slow, take)
        finally:
            self._reading -= taken

    def _submit(self, plans: Any) -> Any:
        if self.draining:
            raise Problem(503, "the server is ending", headers=RETRY)
        try:
            return self.engine.submit(plans)
        except QueueFull:
            if len(plans) > self.engine.limit:
                raise Problem(
                    400, f"{len(plans)} texts in one request, the queue takes {self.engine.limit}"
                ) from None
            raise Problem(429, "too many requests wait", code="queue_full", headers=RETRY) from None

    def report(self, error: BaseException) -> str:
        """Where it went wrong, on stderr under an id; no word of what was asked."""
        number = secrets.token_hex(8)
        places = "".join(traceback.format_tb(error.__traceback__))
        say(f"error {number}: {type(error).__name__}\n{places}")
        return number

    @cached_property
    def _page(self) -> str:
        return (resources.files(__package__) / "page.html").read_text("utf-8")

    @cached_property
    def _page_policy(self) -> str:
        """Its own script and style, and requests to this server: nothing else."""
        parts = [
            f"{kind}-src 'sha256-{_hash(body)}'"
            for kind, tag in (("script", "script"), ("style", "style"))
            for body in re.findall(f"<{tag}>(.*?)</{tag}>", self._page, re.DOTALL)
        ]
        nothing = ("default-src", "base-uri", "form-action", "frame-ancestors")
        closed = [f"{kind} 'none'" for kind in nothing]
        return "; ".join([*closed, "connect-src 'self'", "img-src data:", *parts])


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    return await pieces.__anext__()


def _hash(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()


def application(service: Service) -> ASGIApp:
    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return _problem_response(error)

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, DsconvError)
        return _problem_response(problem_of(error))

    async def starlettes(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: _no_path(request.url.path), 405: f"not by {request.method[:20]}"}
        text = words.get(error.status_code, error.detail)
        headers = dict(error.headers or {})
        return _problem_response(Problem(error.status_code, text, headers=headers))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    async def bug(request: Request, error: Exception) -> Response:
        return _problem_response(
            Problem(500, f"an error of the server, id {service.report(error)}")
        )

    app = Starlette(
        routes=[
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model),
            Route("/v1/completions", service.completions, methods=["POST"]),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/health", service.health),
            Route("/metrics", service.show_metrics),
            Route("/", service.page),
        ],
        exception_handlers={
            Problem: problem,
            DsconvError: ours,
            HTTPException: starlettes,
            ClientGone: gone,
            # Not Exception itself: starlette raises that again, with the text of the request.
            **dict.fromkeys((RuntimeError, ValueError, TypeError, LookupError, OSError), bug),
            **dict.fromkeys((AssertionError, AttributeError, MemoryError, ArithmeticError), bug),
        },
        middleware=_middleware(service),
    )
    app.router.redirect_slashes = False
    return app


def _middleware(service: Service) -> list[Middleware]:
    found = [Middleware(Watch, service=service)]
    if service.access.origins:
        cross = Middleware(
            CORSMiddleware,
            allow_origins=service.access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=["x-request-id", "retry-after"],
        )
        found.append(cross)
    return [*found, Middleware(Gate, access=service.access)]


def _no_path(path: str) -> str:
    """With what was meant: base addresses are given without /v1, twice with it, with a slash."""
    end = "/" + path.strip("/").removeprefix("v1").strip("/").removeprefix("v1/")
    meant = next((known for known in PATHS[:3] if known == f"/v1{end}"), None)
    return f"there is no {path[:200]}; " + (f"use {meant}" if meant else f"see {', '.join(PATHS)}")


def _problem_response(problem: Problem) -> Response:
    response = json_response(problem.to_json(), problem.status)
    response.headers.update(problem.headers)
    return response


class Watch:
    """Counts answers, and gives each an id."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, status, name = time.monotonic(), GONE, secrets.token_hex(8)

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        # Of a kind that no handler knows: starlette would answer it without an id.
        except Exception as error:
            number = self._service.report(error)
            if status == GONE:  # nothing was sent
                failed = _problem_response(Problem(500, f"an error of the server, id {number}"))
                await failed(scope, receive, noted)
        finally:
            seconds = time.monotonic() - begun
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._service.metrics.requests[path, status] += 1
            if path in ("/v1/completions", "/v1/chat/completions"):
                self._service.metrics.duration.observe(seconds)
            detail(f"{name} {scope['method'][:10]} {path} {status} {seconds:.3f} s")


class Gate:
    """Lets in who has the key, and who calls this machine by a name of its own."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._key = None if access.key is None else _digest(access.key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value for name, value in scope["headers"]}
        problem = self._refusal(scope, headers)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await _problem_response(problem)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        name = re.sub(r":\d+$", "", host).removesuffix(".")
        is_local = name in LOCAL_HOSTS or re.fullmatch(r"127(\.\d{1,3}){3}", name)
        if self._access.only_local and not is_local:
            return Problem(403, f"host {name[:100]!r} is not this machine", code="host")
        if self._key is None or scope["path"] in OPEN_PATHS:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(_digest(given.strip()), self._key):
            return None
        return Problem(
            401,
            "the API key is missing or wrong; send authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def _digest(key: bytes) -> bytes:
    """So that the comparison takes the same time for keys of any length."""
    return hashlib.sha256(key).digest()
