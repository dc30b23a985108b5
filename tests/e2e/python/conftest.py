"""What the tests share: a server, and clients that point at it.

The clients do not retry unless a test wants it, and check every answer against the SDK's own
types: a field that is missing or of another type is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import anthropic
import openai
import pytest

from harness import SERVERS, Server, crossed, gateway, running
from harness import stand_in as mocked


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server without limits and faults."""
    with running(*SERVERS[request.param]) as server:
        yield server


@pytest.fixture
def stand_in() -> Iterator[Callable[..., Server]]:
    """Starts the stand-in with further flags, such as ``--limit requests=1/1s``."""
    with ExitStack() as stack:
        yield lambda *flags: stack.enter_context(running(*SERVERS["mock"], *flags))


@dataclass(frozen=True)
class Pair:
    """A gateway and the stand-in behind it."""

    gateway: Server
    upstream: Server


@pytest.fixture
def over() -> Iterator[Callable[..., Pair]]:
    """Starts a gateway over the stand-in: the form of its configuration, the stand-in's flags."""
    with ExitStack() as stack:

        def start(form: Callable[..., str], *flags: str, **parts: str) -> Pair:
            upstream = stack.enter_context(running(*mocked(*flags)))
            return Pair(stack.enter_context(gateway(form(upstream, **parts))), upstream)

        yield start


@pytest.fixture(scope="session")
def translating() -> Iterator[Pair]:
    """A gateway whose upstreams speak the other dialect, without limits and faults."""
    with running(*SERVERS["mock"]) as upstream, gateway(crossed(upstream)) as front:
        yield Pair(front, upstream)


def openai_client(server: Server, *, strict: bool = True, **settings) -> openai.OpenAI:
    settings = {"api_key": "sk-test", "max_retries": 0, **settings}
    return openai.OpenAI(base_url=server.openai, _strict_response_validation=strict, **settings)


def anthropic_client(server: Server, **settings) -> anthropic.Anthropic:
    settings = {"api_key": "sk-ant-test", "max_retries": 0, **settings}
    return anthropic.Anthropic(
        base_url=server.anthropic, _strict_response_validation=True, **settings
    )
