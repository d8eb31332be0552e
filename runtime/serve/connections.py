"""Connections: how long one may take for its request, for reading its answer, and for nothing.

uvicorn ends connections that are idle after an answer. Those that never send a whole request, or do
not read, are ended here.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .answers import json_bytes
from .problems import Problem
from .served import Limits


class Connection(H11Protocol):
    """uvicorn's own, with an end to patience. `limits` is set in a subclass (`connections`)."""

    limits = Limits()
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.slow, self._abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        body = json_bytes(Problem(400, "this is no HTTP request").to_json())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is under way
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait_for_head(self) -> None:
        """A timer from now until a whole head of a request is there; what trickles in does not
        begin it anew."""
        self._cancel_head()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.limits.idle, self._abort)

    def _cancel_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel(self) -> None:
        self._cancel_head()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _abort(self) -> None:
        """Without waiting for what is still to be sent."""
        self.transport.abort()


def connections(limits: Limits) -> type[asyncio.Protocol]:
    """The class of connections with these limits, as uvicorn takes it."""
    return cast(
        "type[asyncio.Protocol]", type("LimitedConnection", (Connection,), {"limits": limits})
    )


def quiet_logging() -> dict[str, Any]:
    """What uvicorn would say of strangers' requests is of no use to whoever runs the server."""
    silent = {"level": "CRITICAL", "handlers": [], "propagate": False}
    return {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn": silent}}
