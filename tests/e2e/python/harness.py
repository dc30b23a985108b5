"""Starts a server of llmq and says where it listens.

The program is the one in LLMQ_BIN. A server is ready when it has said so: a line on stderr that
begins with ``listening`` and holds its address.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

READY = re.compile(r"^listening\b.*?http://(?P<address>[^/\s,]+)")
# Longer than any step needs; reached only when something hangs.
PATIENCE_S = 20

# Every server that the SDKs are pointed at, by name, with the arguments that start it. All tests
# that ask for `server` run once for each.
SERVERS = {
    "mock": ["mock", "--listen", "127.0.0.1:0", "--latency", "0ms"],
    "gateway": ["serve", "--mock", "--listen", "127.0.0.1:0"],
}


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    address: str

    @property
    def openai(self) -> str:
        """The base URL for OpenAI's SDK."""
        return f"http://{self.address}/v1"

    @property
    def anthropic(self) -> str:
        """The base URL for Anthropic's SDK, which adds the version itself."""
        return f"http://{self.address}"

    def books(self) -> dict:
        """What the stand-in counted."""
        url = f"http://{self.address}/mock/report"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return json.load(answer)


def wait_for(upstream: Server, reached: Callable[[dict], bool]) -> dict:
    """The books of a stand-in, once they are so."""
    until = time.monotonic() + PATIENCE_S
    while not reached(books := upstream.books()):
        assert time.monotonic() < until, books
        time.sleep(0.02)
    return books


@contextmanager
def running(*arguments: str) -> Iterator[Server]:
    """Runs ``llmq ARGUMENTS`` for as long as the block lasts."""
    with subprocess.Popen(
        [os.environ["LLMQ_BIN"], *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("LLMQ_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # Ends the wait for a line that never comes.
        hung = threading.Timer(PATIENCE_S, process.kill)
        hung.start()
        try:
            address = _wait_until_ready(process)
            hung.cancel()
            # Whatever else it says must not fill the pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield Server(address)
        finally:
            hung.cancel()
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def stand_in(*flags: str) -> list[str]:
    """The arguments that start a stand-in; it answers at once unless a flag says otherwise."""
    at_once = [] if "--latency" in flags else ["--latency", "0ms"]
    return ["mock", "--listen", "127.0.0.1:0", *at_once, *flags]


@contextmanager
def gateway(config: str) -> Iterator[Server]:
    """Runs a gateway with this configuration."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config)
        file.flush()
        flags = ["--config", file.name, "--listen", "127.0.0.1:0", "--store", "memory:"]
        with running("serve", *flags) as server:
            yield server


# The beginning of a stream, by the path that is asked: a word, and the half of another.
_CUT = {
    "/v1/chat/completions": (
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,'
        '"model":"gpt-5-mini","choices":[{"index":0,"delta":{"role":"assistant",'
        '"content":"Hello"},"finish_reason":null}]}\n\ndata: {"id":"chatcmpl-1","choi'
    ),
    "/v1/messages": (
        'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1",'
        '"type":"message","role":"assistant","model":"claude-haiku-4-5","content":[],'
        '"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":1}}}'
        '\n\nevent: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Hello"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_del'
    ),
}


class _CutInsideAnEvent(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(_CUT[self.path].encode())

    def log_message(self, *_):
        pass


@contextmanager
def cut_inside_an_event() -> Iterator[Server]:
    """An upstream whose streams end in the middle of an event."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _CutInsideAnEvent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Server(f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


_OVER = """
[upstreams.openai]
provider = "openai"
base_url = "{upstream.openai}"
{settings}
[upstreams.anthropic]
provider = "anthropic"
base_url = "{upstream.anthropic}"
{settings}
[models."gpt-5-mini"]
upstreams = [{{ {gpt}, limits = {{ {limits} }} }}]
[models."claude-haiku-4-5"]
upstreams = [{{ {claude}, limits = {{ {limits} }} }}]
[retry]
max_attempts = 2
server = {{ base = "10ms", max = "20ms" }}
"""
_GPT = 'upstream = "openai", model = "gpt-5-mini"'
_CLAUDE = 'upstream = "anthropic", model = "claude-haiku-4-5"'


def straight(upstream: Server, limits: str = "", settings: str = "") -> str:
    """A configuration in which each provider's model is served by its own API."""
    return _OVER.format(
        upstream=upstream, gpt=_GPT, claude=_CLAUDE, limits=limits, settings=settings
    )


def crossed(upstream: Server, limits: str = "", settings: str = "") -> str:
    """A configuration in which each provider's model is served by the other one's API."""
    return _OVER.format(
        upstream=upstream, gpt=_CLAUDE, claude=_GPT, limits=limits, settings=settings
    )


def _wait_until_ready(process: subprocess.Popen) -> str:
    said = []
    for line in process.stderr:
        said.append(line)
        if found := READY.match(line):
            return found["address"]
    raise AssertionError("the server ended before it was ready:\n" + "".join(said))
