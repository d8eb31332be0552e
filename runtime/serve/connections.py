"""Connections: how long one may take for its request, for reading its answer, and for nothing.

uvicorn ends connections that are idle after an answer. Those that never send a whole request, do
not read, or never end a body that nobody wants, are ended here; and where there are as many as may
be, the one that has been idle for longest makes room.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, Literal, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .answers import json_bytes
from .problems import Problem
from .served import Limits

OTHER_FILES = 128  # that the server has open besides connections
# What a connection does: waits for (the rest of) a head; is served; sends a body although it has
# its answer; waits for its last bytes to be read.
Activity = Literal["head", "served", "unread", "closing"]


class Connection(H11Protocol):
    """uvicorn's own, with an end to patience. `limits` is set in a subclass (`connections`)."""

    limits = Limits()
    activity: Activity | None = None
    since = 0.0
    ended = False
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections and not self._make_room():
            transport.abort()
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def shutdown(self) -> None:
        super().shutdown()
        self._watch()

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

    def _watch(self) -> None:
        """A timer from when an activity begins: what trickles in does not begin it anew."""
        activity = self._activity()
        if activity == self.activity:
            return
        self.activity, self.since = activity, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if activity != "served":
            seconds = self.limits.idle if activity == "head" else self.limits.slow
            self._timer = self.loop.call_later(seconds, self._abort)

    def _activity(self) -> Activity:
        if self.transport.is_closing():
            return "closing"
        if self.cycle is None or self.cycle.response_complete:
            return "unread" if self.conn.their_state is h11.SEND_BODY else "head"
        return "served"

    def _make_room(self) -> bool:
        """End the connection that has waited for longest; False where all are served."""
        others = [one for one in self.connections if isinstance(one, Connection)]
        idle = [one for one in others if one.activity not in (None, "served") and not one.ended]
        if not idle:
            return False
        min(idle, key=lambda one: one.since)._abort()
        return True

    def _abort(self) -> None:
        """Without waiting for what is still to be sent."""
        self.ended = True
        self.transport.abort()


def room_for_connections(wanted: int) -> int:
    """How many files of connections this process may have open, `wanted` at most; the limit of the
    process is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(wanted, soft - OTHER_FILES))
    return wanted


def connections(limits: Limits) -> type[asyncio.Protocol]:
    """The class of connections with these limits, as uvicorn takes it."""
    return cast(
        "type[asyncio.Protocol]", type("LimitedConnection", (Connection,), {"limits": limits})
    )


def quiet_logging() -> dict[str, Any]:
    """What uvicorn would say of strangers' requests is of no use to whoever runs the server."""
    silent = {"level": "CRITICAL", "handlers": [], "propagate": False}
    return {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn": silent}}
