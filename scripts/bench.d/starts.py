"""How long an accepted request with room waits for its call, seen from both ends.

Caller and upstream are this process, so both read one clock; what Python takes is in the figures.
"""

import http.client
import http.server
import json
import statistics
import threading
import time

from figures import figure

# What one asks of another is told apart by its only message.
ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench",
    "choices": [{"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "Done."}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}).encode()


class Upstream(http.server.ThreadingHTTPServer):
    """Answers at once, and notes when each call came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Call)
        self.came = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return "{}:{}".format(*self.server_address)


class Call(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        now = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.came[body["messages"][0]["content"]] = now
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


def starts(yard):
    """From the acceptance of a request to its call at the upstream, a lone caller and room."""
    count = 200 if yard.quick else 1000
    after, whole = [], []
    for _ in range(yard.rounds):
        with Upstream() as upstream:
            server = yard.queue(upstream.address)
            accepted = {str(number): accept(server, str(number)) for number in range(count)}
            deadline = time.monotonic() + 30
            while len(upstream.came) < count and time.monotonic() < deadline:
                time.sleep(0.01)
            came = [(upstream.came[name], *times) for name, times in accepted.items()]
            yard.ended(server)
            upstream.shutdown()
        after.append(late(max(came - told, 0) for came, _, told in came))
        whole.append(late(came - asked for came, asked, _ in came))
    command = f"llmq serve; POST /api/requests, {count} times, each after the one before"
    return [
        figure("start", "from the 202 of a request to its call at the upstream, p99, a lone "
               "caller and room", after, "ms", command, ("<", 3)),
        figure("start from the post", "the same from when the request was sent, p99", whole, "ms",
               command),
    ]


def accept(server, name):
    """Hands in one request; when it was sent, and when it was accepted."""
    host, port = server.address.split(":")
    body = {"model": "bench", "messages": [{"role": "user", "content": name}], "max_tokens": 20}
    job = {"model": "bench", "endpoint": "/v1/chat/completions", "body": body}
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.connect()
    asked = time.monotonic()
    connection.request("POST", "/api/requests", json.dumps(job),
                       {"Content-Type": "application/json"})
    answer = connection.getresponse()
    told = time.monotonic()
    answer.read()
    connection.close()
    if answer.status != 202:
        raise SystemExit(f"scripts/bench: a request was answered {answer.status}")
    return asked, told


def late(seconds):
    """All but one in a hundred took so many milliseconds or less."""
    return statistics.quantiles(seconds, n=100)[-1] * 1000
