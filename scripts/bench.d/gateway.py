"""What the gateway costs, beside a bare reverse proxy in the same run.

The gateway under test has the last processor to itself; the load and the upstream share the
others. The bare proxy (crates/llmq-server/examples/bare_proxy.rs) takes the gateway's place in
turns: both run all the time, and only one of them gets calls.
"""

import contextlib
import functools
import http.client
import json
import os
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import sys
import time

from figures import figure
from world import others

LUA = "scripts/bench.d/chat.lua"
MB = 1e6

CONFIG = """
[server]
listen = "{listen}"
auth = "{auth}"
max_wait = "10m"
[upstreams.bench]
provider = "openai"
base_url = "http://{upstream}/v1"
api_key = {{ env = "LLMQ_BENCH_UPSTREAM_KEY" }}
adaptive = {{ max = 0 }}
[models.bench]
upstreams = [ {{ upstream = "bench", model = "bench", limits = {{ {limits} }} }} ]
"""
# Limits that no call ever waits for: what is measured is the looking.
WIDE = 'concurrency = 10000, custom = ["requests=1000M/1m", "tokens=1000000M/1m"]'
KEY = {
    "name": "bench",
    "scopes": ["call", "read", "manage"],
    "limits": ["requests=1000M/1m"],
    "budget": {"tokens_per_day": 10**12},
}


def gateway(bench):
    """All of it."""
    with Site(bench) as site:
        return [
            *throughput(site),
            *latency(site),
            *features(site),
            *streams(site),
            *memory(site),
            *crowd(site),
            *closed_loop(site),
        ]


class Site:
    """The processes that a measurement needs, each on its processors; ended with the block."""

    def __init__(self, bench):
        self.bench = bench
        self.rounds = bench.rounds
        self.quick = bench.quick
        self.seconds = 1 if bench.quick else 4
        self.ending = contextlib.ExitStack()
        many_files()
        need("wrk", "apt install wrk")
        need("taskset", "apt install util-linux")
        self.cores = sorted(os.sched_getaffinity(0))
        if len(self.cores) < 2:
            sys.exit("scripts/bench: the gateway part needs two processors")

    def __enter__(self):
        self.upstream = self.start("instant_upstream")
        self.bare = self.start("bare_proxy", self.upstream.address)
        return self

    def __exit__(self, *_):
        self.ending.close()

    @functools.cached_property
    def tools(self):
        """Where the examples of llmq-server are built."""
        self.bench.cargo("build", "--release", "-p", "llmq-server", "--examples")
        target = os.environ.get("CARGO_TARGET_DIR", self.bench.root / "target")
        return pathlib.Path(target) / "release" / "examples"

    @functools.cached_property
    def plain(self):
        """The gateway without limits, keys or a log."""
        return self.llmq(self.upstream.address)

    def llmq(self, upstream, limits="", auth="none", flags=()):
        """A gateway of its own before `upstream`."""
        if self.bench.noise:
            return self.start("bare_proxy", upstream)
        address = free_address()
        name = f"llmq-{address.rpartition(':')[2]}"
        home = self.bench.directory / name
        home.mkdir()
        config = CONFIG.format(listen=address, upstream=upstream, limits=limits, auth=auth)
        (home / "llmq.toml").write_text(config)
        command = [self.bench.llmq, "serve", "--config", home / "llmq.toml", *flags]
        return self.run(command, address, self.cores[-1:], home)

    def mock(self, *flags):
        """`llmq mock` beside the load."""
        address = free_address()
        command = [self.bench.llmq, "mock", "--listen", address, *flags]
        return self.run(command, address, self.cores[:-1])

    def start(self, example, *arguments):
        """A tool that listens: the proxy on the gateway's processor, the upstream on the load's."""
        address = free_address()
        cores = self.cores[-1:] if example == "bare_proxy" else self.cores[:-1]
        return self.run([self.tools / example, address, *arguments], address, cores)

    def run(self, command, address, cores, home=None):
        said = self.bench.directory / f"{address.rpartition(':')[2]}.said"
        with open(said, "w", encoding="utf-8") as words:
            process = subprocess.Popen(
                [*pinned(cores), *command],
                cwd=home or self.bench.directory,
                env={**os.environ, "LLMQ_BENCH_UPSTREAM_KEY": "none", "NO_COLOR": "1"},
                stdout=subprocess.DEVNULL,
                stderr=words,
            )
        server = Server(process, address, said)
        self.ending.callback(server.end)
        server.wait()
        return server

    def wrk(self, server, connections, seconds=None):
        """One run of the request load; what it saw."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds or self.seconds}s", "-s", LUA]
        done = subprocess.run(
            [*pinned(self.cores[:-1]), *command, f"http://{server.address}"],
            cwd=self.bench.root,
            env={**os.environ, "LLMQ_BENCH_KEY": server.key},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seen = json.loads(done.stdout.splitlines()[-1])
        if seen["errors"]:
            sys.exit(f"scripts/bench: {seen['errors']} calls of {seen['requests']} failed")
        return {**seen, "rate": seen["requests"] / seen["seconds"]}

    def tool(self, name, server, *flags):
        """A load tool that is running."""
        return subprocess.Popen(
            [*pinned(self.cores[:-1]), self.tools / name, server.address, *map(str, flags)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def streams(self, server, *flags):
        """One run of `stream_load` to its end, with the gateway's processor time."""
        before = server.cpu_s()
        seen = finished(self.tool("stream_load", server, *flags))
        if seen["broken"]:
            sys.exit(f"scripts/bench: {seen['broken']} streams broke at {server.address}")
        return {**seen, "cpu_s": server.cpu_s() - before}

    def in_turns(self, ours, measure, times):
        """Pairs (of the bare proxy, ours): the bare one runs before and after each of ours, and
        its two runs are averaged by whoever compares."""
        pairs = []
        before = measure(self.bare)
        for _ in range(times):
            mine = measure(ours)
            after = measure(self.bare)
            pairs.append((before, mine, after))
            before = after
        return pairs


class Server:
    """A process that listens."""

    def __init__(self, process, address, said):
        self.process = process
        self.address = address
        self.said = said
        self.key = ""

    def wait(self):
        """Until it takes connections."""
        host, _, port = self.address.rpartition(":")
        for _ in range(200):
            if self.process.poll() is not None:
                words = " ".join(map(str, self.process.args))
                sys.exit(f"scripts/bench: {words} ended at once: {self.said.read_text()}")
            with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
                return
            time.sleep(0.05)
        sys.exit(f"scripts/bench: {self.process.args} does not listen")

    def end(self):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()

    def get(self, path):
        """A document of its own."""
        return self.ask("GET", path)

    def post(self, path, document):
        """What comes back for a document."""
        return self.ask("POST", path, json.dumps(document), {"Content-Type": "application/json"})

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        said = answer.read().decode()
        if answer.status >= 400:
            sys.exit(f"scripts/bench: {path} of {self.address}: {said}")
        return json.loads(said)

    def memory_mb(self):
        """Resident now."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024 / MB

    def cpu_s(self):
        """Processor time since its start, of all its threads (clock_getcpuclockid)."""
        return time.clock_gettime((~self.process.pid << 3) | 2)


def need(command, how):
    if not shutil.which(command):
        sys.exit(f"scripts/bench: {command} is needed: {how}")


def pinned(cores):
    return ["taskset", "-c", ",".join(map(str, cores))]


def many_files():
    """As many open files as the system lets us have: thousands of clients are connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def finished(process):
    """What a tool printed last."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"scripts/bench: {process.args} ended with {process.returncode}")
    return json.loads(output.splitlines()[-1])


def mean(*values):
    return sum(values) / len(values)


def said(load, gateway="llmq serve"):
    """The commands of a figure, as one types them."""
    return f"instant_upstream UPSTREAM; bare_proxy BARE UPSTREAM; {gateway}; {load}"


def throughput(site):
    """Requests a second beside the bare proxy."""
    measured = []
    for connections in (64, 256):
        measure = functools.partial(site.wrk, connections=connections)
        measure(site.bare), measure(site.plain)
        with others(*all_of(site)) as load:
            rounds = site.in_turns(site.plain, measure, site.rounds)
        words = f"{connections} connections"
        command = said(f"wrk -t1 -c{connections} -d{site.seconds}s -s {LUA} http://ADDRESS")
        measured += [
            figure(f"rate {connections}", f"requests, {words}",
                   [mine["rate"] for _, mine, _ in rounds], "/s", command),
            figure(f"bare rate {connections}", f"requests, {words}, bare proxy",
                   [mean(a["rate"], b["rate"]) for a, _, b in rounds], "/s", command),
            figure(f"rate ratio {connections}", f"llmq over the bare proxy, {words}",
                   [mine["rate"] / mean(a["rate"], b["rate"]) for a, mine, b in rounds],
                   "x", command, (">=", 0.85), others=[round(load["share"], 3)]),
        ]
    return measured


def all_of(site):
    return [server.process for server in (site.upstream, site.bare, site.plain)]


def latency(site):
    """What one caller feels."""
    measure = functools.partial(site.wrk, connections=1, seconds=1 if site.quick else 3)
    measure(site.bare), measure(site.plain)
    pairs = site.in_turns(site.plain, measure, 2 if site.quick else 10)
    command = said(f"wrk -t1 -c1 -d3s -s {LUA} http://ADDRESS")
    direct = site.wrk(site.upstream, 1, 1)
    measured = []
    for name, most in (("p50", 30), ("p99", 100)):
        at = f"{name}_us"
        measured += [
            figure(f"{name} more", f"{name} more than the bare proxy's, 1 connection",
                   [mine[at] - mean(a[at], b[at]) for a, mine, b in pairs], "µs", command,
                   ("<=", most)),
            figure(f"{name} ratio", f"{name} over the bare proxy's, 1 connection",
                   [mine[at] / mean(a[at], b[at]) for a, mine, b in pairs], "x", command),
            figure(f"bare {name}", f"{name} of the bare proxy, 1 connection",
                   [mean(a[at], b[at]) for a, _, b in pairs], "µs", command),
            figure(f"direct {name}", f"{name} without a proxy, on the load's own processor",
                   [direct[at]], "µs", command),
        ]
    return measured


def features(site):
    """What a key with a limit and a budget, an upstream's limits and a log take off; counting
    for the metrics is never off."""
    if site.bench.noise:
        full = site.plain
    else:
        full = with_everything(site)
    rounds = []
    site.wrk(full, 64)
    before = site.wrk(site.plain, 64)
    for _ in range(site.rounds):
        mine = site.wrk(full, 64)
        after = site.wrk(site.plain, 64)
        rounds.append(mine["rate"] / mean(before["rate"], after["rate"]))
        before = after
    command = said(f"wrk -t1 -c64 -d{site.seconds}s -s {LUA} http://ADDRESS")
    return [
        figure("every feature", "with a key, its limit and budget, the upstream's limits and a log "
               "to a file, over the plain gateway, 64 connections", rounds, "x", command,
               (">=", 0.85)),
    ]


def with_everything(site):
    """A gateway that asks for a key, counts its limit and budget and the upstream's limits, and
    writes a log."""
    log = site.bench.directory / "calls.log"
    server = site.llmq(site.upstream.address, limits=WIDE, auth="auto", flags=["--call-log", log])
    server.key = server.post("/api/keys", KEY)["key"]
    return server


def streams(site):
    """First byte, delay of events, and a flood."""
    turns = 2 if site.quick else 10
    paced = ["--streams", 8, "--turns", turns, "--pace-us", 1000]
    flood = ["--streams", 16, "--turns", 20 if site.quick else 100, "--pace-us", 0]
    measured = []

    def rounds(flags):
        measure = lambda server: site.streams(server, *flags)
        measure(site.bare), measure(site.plain)
        return site.in_turns(site.plain, measure, site.rounds)

    found = rounds(paced)
    command = said(f"stream_load ADDRESS {' '.join(map(str, paced))}")
    first = lambda seen: seen["first_byte_us"]["p50"]
    event = lambda seen: seen["event_us"]["p99"]
    words = "8 streams of 100 events, 1 ms apart"
    measured += [
        figure("first byte", f"first byte, p50, more than the bare proxy's, {words}",
               [first(mine) - mean(first(a), first(b)) for a, mine, b in found], "µs", command,
               ("<=", 100)),
        figure("event delay", f"an event from its writing to its arrival, p99, {words}",
               [event(mine) for _, mine, _ in found], "µs", command, ("<=", 1000)),
        figure("bare event delay", f"the same through the bare proxy, {words}",
               [mean(event(a), event(b)) for a, _, b in found], "µs", command),
    ]
    for burst, target in ((16, (">=", 2)), (1, None)):
        flags = [*flood, "--burst", burst]
        found = rounds(flags)
        command = said(f"stream_load ADDRESS {' '.join(map(str, flags))}")
        words = f"a flood, {'one event' if burst == 1 else f'{burst} events'} a write"
        rate = lambda seen: seen["events_per_s"]
        cost = lambda seen: seen["cpu_s"] / seen["event_us"]["count"]
        measured += [
            figure(f"flood {burst}", f"events, {words}",
                   [rate(mine) for _, mine, _ in found], "/s", command),
            figure(f"flood ratio {burst}", f"events over the bare proxy's, {words}",
                   [rate(mine) / mean(rate(a), rate(b)) for a, mine, b in found], "x", command,
                   target),
            figure(f"flood cost {burst}", f"processor time of an event over the bare proxy's, {words}",
                   [cost(mine) / mean(cost(a), cost(b)) for a, mine, b in found], "x", command),
        ]
    return measured


def memory(site):
    """Resident memory: idle, with many streams, and over many calls."""
    idle, open_streams, grown = [], [], []
    for _ in range(1 if site.quick else min(site.rounds, 3)):
        server = site.llmq(site.upstream.address)
        site.wrk(server, 1, 1)
        time.sleep(1)
        idle.append(server.memory_mb())
        count = 100 if site.quick else 1000
        load = site.tool("stream_load", server, "--streams", count, "--pace-us", 50_000, "--hold")
        load.stdout.readline()
        open_streams.append(most_memory(server, load))
        if finished(load)["broken"]:
            sys.exit("scripts/bench: streams broke")
        server.end()
    server = site.llmq(site.upstream.address)
    calls, marks, wanted = 0, [], 50_000 if site.quick else 1_000_000
    while calls < wanted:
        calls += site.wrk(server, 64, 1 if site.quick else 2)["requests"]
        marks.append((calls, server.memory_mb()))
    tenth = next(size for done, size in marks if done >= wanted / 10)
    grown.append(marks[-1][1] / tenth)
    stream = f"stream_load ADDRESS --streams {count} --pace-us 50000 --hold"
    load = f"wrk -t1 -c64 -d2s -s {LUA} http://ADDRESS"
    return [
        figure("idle", "resident memory after a second of calls, idle", idle, "MB",
               said(f"wrk -t1 -c1 -d1s -s {LUA} http://ADDRESS"), ("<", 25)),
        figure("open streams", f"resident memory, {count:,} open streams", open_streams, "MB",
               said(stream), ("<", 60)),
        figure("after many", f"resident memory after {wanted:,} calls, 64 connections",
               [marks[-1][1]], "MB", said(load)),
        figure("growth", f"the same over what it was after {wanted // 10:,}", grown, "x",
               said(load), ("<=", 1.05)),
    ]


def most_memory(server, load):
    """The most that is resident while `load` runs, looked at ten times a second."""
    most = server.memory_mb()
    while load.poll() is None:
        most = max(most, server.memory_mb())
        time.sleep(0.1)
    return most


def crowd(site):
    """Thousands who wait in line, beside the same server before they came."""
    count = 500 if site.quick else 10_000
    seconds = 3 if site.quick else 10
    sizes, shares, alone = [], [], []
    for _ in range(1 if site.quick else min(site.rounds, 3)):
        server = site.llmq(site.upstream.address, 'custom = ["requests=1/1d"]')
        time.sleep(1)
        before = server.memory_mb()
        idle = busy_share(server, seconds)
        alone.append(idle)
        # The limit's one call goes first, so that everybody after it waits.
        group = {"name": "crowd", "callers": count, "headers": ["X-LLMQ-Max-Wait: 10m"]}
        load = site.tool("callers", server, "--seconds", 600, "--hold", "--group", json.dumps(group))
        load.stdout.readline()
        time.sleep(5)
        sizes.append(server.memory_mb() - before)
        shares.append(busy_share(server, seconds) - idle)
        load.terminate()
        load.communicate()
        server.end()
    command = said(f"callers ADDRESS --seconds 600 --hold --group '{json.dumps(group)}'",
                   "llmq serve with requests=1/1d")
    return [
        figure("crowd memory", f"what {count:,} waiting clients add to resident memory", sizes,
               "MB", command, ("<", 100)),
        figure("crowd processor", f"share of a processor that {count:,} waiting clients take",
               shares, "share", command, ("<=", 0.002)),
        figure("crowd alone", "share of a processor that the same server takes before they come",
               alone, "share", command),
    ]


def busy_share(server, seconds):
    """The share of a processor that a server takes in the next seconds."""
    used = server.cpu_s()
    time.sleep(seconds)
    return (server.cpu_s() - used) / seconds


WINDOW_COUNT, WINDOW_S = 200, 2
TENANTS = ["amber", "beryl", "coral", "diana"]


def callers():
    """400 callers: a few urgent ones who pause, and many who do not, of four tenants."""
    def group(name, callers, priority, tenant, think_ms=0):
        return {"name": name, "callers": callers, "think_ms": think_ms,
                "headers": [f"X-LLMQ-Priority: {priority}", f"X-LLMQ-Tenant: {tenant}",
                            "X-LLMQ-Max-Wait: 60s"]}

    return [
        group("high", 20, "high", "desk", 1000),
        group("normal", 40, "normal", "desk", 1000),
        *(group(f"low {tenant}", 85, "low", tenant) for tenant in TENANTS),
    ]


# Means that differ by less are not in another order.
ALIKE_S = 0.001


def closed_loop(site):
    """A limit that is always wanted in full."""
    limit = f"requests={WINDOW_COUNT}/{WINDOW_S}s"
    seconds = 6 if site.quick else 30
    refused, failed, used, ordered, apart, waits = [], [], [], [], [], {}
    for _ in range(site.rounds):
        mock = site.mock("--limit", limit, "--latency", "20ms")
        server = site.llmq(mock.address, f'custom = ["{limit}"]')
        groups = [word for each in callers() for word in ("--group", json.dumps(each))]
        # The first window goes to whoever comes first: shares are of what is waited for.
        seen = finished(site.tool("callers", server, "--seconds", seconds, "--warm-up", WINDOW_S,
                                  *groups))
        refused.append(mock.get("/mock/report")["refused"])
        failed.append(sum(failures(each) for each in seen["groups"]))
        used.append(share_of_limit(seen["answered_ms"]))
        answers = {each["name"]: each["status"].get("200", 0) for each in seen["groups"]}
        low = [answers[f"low {tenant}"] for tenant in TENANTS]
        apart.append(max(abs(count / max(mean(*low), 1) - 1) for count in low))
        took = {each["name"]: each["took_us"]["mean"] / 1e6 for each in seen["groups"]}
        took["low"] = mean(*(took.pop(f"low {tenant}") for tenant in TENANTS))
        # Who is served first in a window asks first for the next: urgent calls wait alike, to parts
        # of a millisecond.
        ordered.append(took["high"] <= took["normal"] + ALIKE_S and took["normal"] <= took["low"])
        for name, value in took.items():
            waits.setdefault(name, []).append(value)
        server.end()
        mock.end()
    command = (f"llmq mock --limit '{limit}' --latency 20ms; llmq serve; "
               f"callers ADDRESS --seconds {seconds} --warm-up {WINDOW_S} --group …")
    words = f"400 callers, `{limit}`"
    return [
        figure("loop refused", f"429s from the upstream, {words}", refused, "count", command,
               ("=", 0)),
        figure("loop failed", f"callers' calls that failed, {words}", failed, "count", command,
               ("=", 0)),
        figure("loop use", f"share of the limit used, {words}", used, "share", command,
               (">=", 0.98)),
        figure("loop order", f"rounds whose mean waits are not in the order of priority, {words}",
               [ordered.count(False)], "count", command, ("=", 0)),
        *(figure(f"loop wait {name}", f"mean wait of {name} calls, {words}", values, "s", command)
          for name, values in waits.items()),
        figure("loop shares", f"farthest of four tenants from an equal share, {words}", apart,
               "share", command, ("<=", 0.05)),
    ]


def failures(group):
    """Calls of a group that got another answer than a good one, or none."""
    return group["broken"] + sum(group["status"].values()) - group["status"].get("200", 0)


def share_of_limit(answered_ms):
    """The least time for whole windows over the time they took, from the end of the first to
    the end of the last."""
    windows = len(answered_ms) // WINDOW_COUNT
    if windows < 2:
        return 0.0
    first, last = answered_ms[WINDOW_COUNT - 1], answered_ms[windows * WINDOW_COUNT - 1]
    return (windows - 1) * WINDOW_S / ((last - first) / 1000)
