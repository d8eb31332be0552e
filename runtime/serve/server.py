"""The socket, signals, and the end: what runs is finished, what comes is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import uvicorn

from dsconv.errors import OutputError, UsageError
from dsconv.runtime.console import say

from .app import Service, application
from .connections import connections, quiet_logging, room_for_connections

BACKLOG = 1024
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PASS_SECONDS = 10.0  # the engine's thread is waited for so long


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def bind(address: Address) -> socket.socket:
    """A socket on the address; port 0 is any that is free.

    Raises:
        UsageError: there is no such host here. OutputError: the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {address.host}: {error}",
            "use 127.0.0.1, 0.0.0.0 or an address of this machine",
        ) from error
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a port whose last owner was killed can be had at once
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    except OSError as error:
        found.close()
        raise OutputError(
            f"cannot listen on {address.host} port {address.port}: {error.strerror}",
            "choose another with --port; 0 takes any that is free",
        ) from error
    return found


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


class _Server(uvicorn.Server):
    """Signals are handled here, not by uvicorn."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(
    service: Service, listening: socket.socket, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until a signal. A second one ends the process at once, with 128 + its number."""
    limits = service.served.limits
    limits = replace(limits, connections=room_for_connections(limits.connections))
    config = uvicorn.Config(
        application(service),
        http=connections(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=quiet_logging(),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(limits.idle) + 1,
        timeout_graceful_shutdown=2,
        backlog=BACKLOG,
    )
    service.engine.start()
    asyncio.run(_serve(_Server(config), service, listening, ready))
    service.engine.stop(PASS_SECONDS)


async def _serve(
    server: _Server, service: Service, listening: socket.socket, ready: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    def on_signal(number: int) -> None:
        if service.draining:
            os._exit(128 + number)
        service.draining = True
        draining.append(loop.create_task(_drain(server, service)))

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    listening.listen(BACKLOG)  # from here on clients wait instead of being refused
    ready()
    await server.serve(sockets=[listening])


async def _drain(server: _Server, service: Service) -> None:
    """Requests are answered with 503 meanwhile, so that whoever balances load goes elsewhere."""
    limit = service.served.limits.drain
    if service.engine.open:
        say(f"ending: {service.engine.open} texts are being written, at most {limit:g} s more")
    end = time.monotonic() + limit
    while service.engine.open and time.monotonic() < end:
        await asyncio.sleep(0.05)
    server.should_exit = True
