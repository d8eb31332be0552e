"""Responses, whole or as server-sent events; a reader that goes away ends the work for it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dsconv.convert.files.json_file import parse_json
from dsconv.errors import DsconvError, InputError

from .choice import End, Event, Failure, PromptLogs, Step
from .engine import Engine, SlowReader, Ticket
from .problems import ClientGone, Problem, problem_of

DONE = b"data: [DONE]\n\n"
LARGE = 1 << 16  # bytes of a body that are not parsed on the event loop
Result = TypeVar("Result")


def json_bytes(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
        "utf-8", "replace"
    )


def event_bytes(content: object) -> bytes:
    return b"data: " + json_bytes(content) + b"\n\n"


def json_response(content: object, status: int = 200) -> Response:
    return Response(json_bytes(content), status, media_type="application/json")


async def read_object(
    request: Request, limit: int, seconds: float, take: Callable[[int], None]
) -> Any:
    """The JSON of the body.

    Args:
        take: told of every piece's bytes as they arrive; may refuse.

    Raises:
        Problem: it is too large, too slow, no JSON, or said to be something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(
            415, f"content-type is {kind[:80]!r}, expected application/json", code="content_type"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "content-encoding is not supported; send the body as it is")
    try:
        body = await asyncio.wait_for(_read(request, limit, take), seconds)
    except (asyncio.TimeoutError, TimeoutError):
        raise Problem(408, f"the body did not arrive within {seconds:g} seconds") from None
    try:
        if len(body) > LARGE:
            return await asyncio.to_thread(parse_json, body, "the body")
        return parse_json(body, "the body")
    except InputError as error:
        raise Problem(400, error.message) from error


async def _read(request: Request, limit: int, take: Callable[[int], None]) -> bytes:
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limit:
        raise Problem(413, f"the body has {stated} bytes, limit {limit}", headers=_CLOSE)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        take(len(piece))
        body += piece
        if len(body) > limit:
            raise Problem(413, f"the body has more than {limit} bytes", headers=_CLOSE)
        if not message.get("more_body", False):
            return bytes(body)


_CLOSE = {"connection": "close"}  # what is left of the body is not read


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Raises ClientGone: whoever asked went away first; the work was cancelled."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass
class Texts:
    """What comes of a ticket, event by event."""

    engine: Engine
    ticket: Ticket
    ends: dict[int, End] = field(default_factory=dict)

    async def __aiter__(self) -> AsyncIterator[list[Step | PromptLogs | End]]:
        """Events in lists, as they lie ready.

        Raises:
            Problem: the request cannot be answered to its end.
        """
        while not self._whole:
            events = [_checked(event) for event in await self.ticket.mailbox.take()]
            self.ends.update({e.choice: e for e in events if isinstance(e, End)})
            yield events

    @property
    def _whole(self) -> bool:
        return len(self.ends) == len(self.ticket.plans)

    def close(self) -> None:
        """Nobody listens any more."""
        if not self._whole:
            self.engine.cancel(self.ticket)

    def usage(self, prompts: int) -> dict[str, Any]:
        """prompts: how many there were; texts of one prompt share its tokens."""
        ends = [self.ends[index] for index in sorted(self.ends)]
        firsts = ends[:: max(1, len(ends) // prompts)]
        prompt = sum(end.prompt_tokens for end in firsts)
        written = sum(end.generated for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(end.reused for end in firsts)},
        }


def _checked(event: Event) -> Step | PromptLogs | End:
    if not isinstance(event, Failure):
        return event
    error = event.error
    if isinstance(error, SlowReader):
        raise ClientGone
    if isinstance(error, MemoryError):
        raise Problem(503, "not enough memory for this request; try a shorter one")
    if isinstance(error, DsconvError):
        raise problem_of(error) from error
    raise error


Report = Callable[[BaseException], str]


class EventStream(Response):
    """Server-sent events. The first piece is there before the status is sent, so that what is
    wrong from the beginning is answered with a status of its own.

    Args:
        report: notes an error that nobody expected -> its id.
        finished: called at the end, whatever it is.
    """

    def __init__(
        self,
        first: bytes,
        rest: AsyncIterator[bytes],
        report: Report,
        finished: Callable[[], None],
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._first, self._rest = first, rest
        self._report, self._finished = report, finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_all(send))
        except ClientGone:
            return  # the connection is closed, with what it had
        finally:
            self._finished()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        await send(_body(self._first))
        try:
            async for piece in self._rest:
                await send(_body(piece))
        except ClientGone:
            raise
        except Problem as problem:
            await send(_body(event_bytes(problem.to_json())))
        except Exception as error:
            failed = Problem(500, f"an error of the server, id {self._report(error)}")
            await send(_body(event_bytes(failed.to_json())))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _body(piece: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": piece, "more_body": True}


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"
