"""From a loaded model to a server that answers."""

from __future__ import annotations

import socket

from dsconv.errors import UnsupportedError
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.console import say, size_text
from dsconv.runtime.generate.model_settings import wanted_answer
from dsconv.runtime.sessions.load import Loaded

from .app import Access, Service
from .engine import Engine
from .metrics import Metrics
from .served import Limits, serve_model
from .server import run_server, url_of


def start(
    loaded: Loaded,
    options: BatchOptions,
    name: str,
    limits: Limits,
    access: Access,
    place: socket.socket,
) -> None:
    """Serve until a signal.

    Args:
        place: a bound socket.

    Raises:
        InputError, UnsupportedError: the model's tokenizer, template or settings are broken.
    """
    batch = open_batch(loaded, options)
    if batch.capacity < 1 or batch.max_sequences < 1:
        raise UnsupportedError("the cache has no room for a single token", "give it more memory")
    context = min(batch.context_length, batch.capacity)
    served = serve_model(loaded, name, limits, context)
    for remark in wanted_answer(loaded, {}).not_applied:  # also: its settings can be read
        say(f"warning: {remark}")
    metrics = Metrics()
    service = Service(
        served, Engine(batch, served.tokenizer, limits.queue, metrics), metrics, access
    )
    url = url_of(place)

    def ready() -> None:
        say(f"{name} at {url}/v1, a page for people at {url}/")
        say(
            f"{loaded.runtime} on {loaded.provider}: {batch.max_sequences} texts at once, "
            f"{batch.capacity} tokens in the cache, requests up to {size_text(limits.body_bytes)}"
        )
        if not access.only_local and access.key is None:
            say("warning: everybody who reaches this machine may use it; set --api-key")

    if served.template is not None:
        served.template.start()
    run_server(service, place, ready)
