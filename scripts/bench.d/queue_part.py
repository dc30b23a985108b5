"""What the durable queue does in a second, beside other queues at equal durability.

Every accept is synced before it is acknowledged: llmq's by its store, the others' by a Redis
with `appendfsync always`. All processes share all processors, as on a small machine.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

from figures import figure
from gateway import Server, Site, finished, free_address, mean, need
from starts import starts
from world import others

LUA = "scripts/bench.d/jobs.lua"
CHAT = "scripts/bench.d/chat.lua"
RIVALS = pathlib.Path(__file__).parent / "rivals"
CALLERS = 64
BULK = 1000

CONFIG = """
[server]
listen = "{listen}"
auth = "none"
max_body = "32MB"
[store]
url = "sqlite:{store}"
max_jobs = 20_000_000
max_bytes = "60GB"
request_ttl = "30d"
[upstreams.bench]
provider = "openai"
base_url = "http://{upstream}/v1"
api_key = {{ env = "LLMQ_BENCH_UPSTREAM_KEY" }}
adaptive = {{ max = 0 }}
[models.bench]
upstreams = [ {{ upstream = "bench", model = "bench", limits = {{ {limits} }} }} ]
"""
# What a burst needed goes back to the system within so many seconds.
SETTLED_S = 3
# Nothing starts, so that what is measured is accepting.
SHUT = 'custom = ["requests=1/30d"]'


def queue(bench):
    """All of it."""
    with Yard(bench) as yard:
        return [*accepts(yard), *lives(yard), *starts(yard), *backlog(yard), *plain(yard)]


class Yard(Site):
    """The gateway part's processes, without processors of their own."""

    def __enter__(self):
        need("redis-server", "apt install redis-server")
        need("node", "Node 20 or later")
        super().__enter__()
        self.long = self.start("instant_upstream", "2000")
        return self

    def queue(self, upstream, limits="", home=None):
        """A server with a store of its own; `home` is where an earlier one had its."""
        address = free_address()
        home = home or self.bench.directory / f"queue-{address.rpartition(':')[2]}"
        home.mkdir(exist_ok=True)
        config = CONFIG.format(listen=address, store=home / "llmq.db", upstream=upstream,
                               limits=limits)
        (home / "llmq.toml").write_text(config)
        began = time.monotonic()
        command = [self.bench.llmq, "serve", "--config", home / "llmq.toml"]
        server = self.run(command, address, self.cores, home)
        while not ready(server):
            time.sleep(0.005)
        server.home, server.ready_s = home, time.monotonic() - began
        return server

    def jobs(self, server, connections, many=1, seconds=None):
        """Accepts for a while; what wrk saw."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds or self.seconds}s",
                   "--timeout", "30s", "-s", LUA]
        done = subprocess.run(
            [*command, f"http://{server.address}"],
            cwd=self.bench.root,
            env={**os.environ, "LLMQ_BENCH_MANY": str(many)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seen = json.loads(done.stdout.splitlines()[-1])
        if seen["errors"]:
            sys.exit(f"scripts/bench: {seen['errors']} requests of {seen['requests']} failed")
        return {**seen, "rate": seen["jobs"] / seen["seconds"]}

    def ended(self, server):
        """Stops a server and removes its store."""
        server.end()
        shutil.rmtree(server.home)

    @contextlib.contextmanager
    def redis(self):
        """A Redis that syncs every write, with nothing in it."""
        address = free_address()
        port = address.rpartition(":")[2]
        home = self.bench.directory / f"redis-{port}"
        home.mkdir()
        command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--appendonly", "yes",
                   "--appendfsync", "always", "--save", "", "--dir", home]
        server = self.run(command, address, self.cores, home)
        try:
            yield port
        finally:
            server.end()
            shutil.rmtree(home)

    @functools.cached_property
    def node(self):
        """BullMQ in a directory of its own, made once."""
        place = self.bench.root / "target" / "bench" / "bullmq"
        if not (place / "node_modules" / "bullmq").exists():
            place.mkdir(parents=True, exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(RIVALS / name, place)
            subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=place,
                           check=True)
        shutil.copy(RIVALS / "bullmq.mjs", place)
        return place / "bullmq.mjs"

    @functools.cached_property
    def celery(self):
        """A Python with Celery, made once."""
        place = self.bench.root / "target" / "bench" / "celery"
        python = place / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "-r",
                            RIVALS / "celery.txt"], check=True)
        return python

    @functools.cached_property
    def apalis(self):
        """apalis, built once."""
        manifest = RIVALS / "apalis" / "Cargo.toml"
        place = self.bench.root / "target" / "bench" / "apalis"
        self.bench.cargo("build", "--release", "--locked", "--manifest-path", str(manifest),
                         CARGO_TARGET_DIR=str(place))
        return place / "release" / "apalis-rival"

    def rivals(self):
        """One round of each: name to what it printed."""
        jobs, singles, slow = (2000, 1280, 640) if self.quick else (20_000, 19_200, 3_200)
        found = {}
        for name, command in (
            ("BullMQ", lambda at: ["node", self.node, at, jobs, singles, CALLERS]),
            # Its script for taking jobs fails when more than some 8,000 came in bulk.
            ("apalis", lambda at: [self.apalis, f"redis://127.0.0.1:{at}", min(jobs, 5000),
                                   singles, CALLERS]),
            ("Celery", lambda at: [self.celery, RIVALS / "celery_rival.py", at, 0, slow, CALLERS]),
        ):
            with self.redis() as port:
                done = subprocess.run(list(map(str, command(port))), stdout=subprocess.PIPE,
                                      env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                                      text=True, check=True)
                seen = json.loads(done.stdout.splitlines()[-1])
                # What it says of lives begins when all of it is accepted.
                accepted = seen.get("bulk", seen["single"])
                seen["lives"] = 1 / (1 / accepted + 1 / seen["lives"])
                found[name] = seen
        return found


def ready(server):
    """Whether it says that it is."""
    with contextlib.suppress(OSError, ValueError):
        return server.get("/health/ready").get("status") == "ok"
    return False


def all_rounds(yard):
    """Rounds of the rivals, measured once, whoever asks."""
    if "rivals" not in yard.bench.kept:
        yard.bench.kept["rivals"] = [yard.rivals() for _ in range(yard.rounds)]
    return yard.bench.kept["rivals"]


def beside(yard, ours, what, least, rival=None):
    """Our rates of one thing, each rival's, and the ratio to `rival`, or else to the best of
    them, round by round."""
    rivals = all_rounds(yard)
    names = [name for name in rivals[0] if what in rivals[0][name]]
    command = "rivals: scripts/bench.d/rivals, Redis with appendfsync always"
    best = [max(each[name][what] for name in ([rival] if rival else names)) for each in rivals]
    return [
        *(figure(f"{what} {name}", f"{WORDS[what]}, {name}",
                 [each[name][what] for each in rivals], "jobs/s", command) for name in names),
        figure(f"{what} ratio", f"{WORDS[what]}, llmq over {rival or 'the best of them'}",
               [mine / other for mine, other in zip(ours, best)], "x", command, (">=", least)),
    ]


WORDS = {
    "single": f"accepted one by one, {CALLERS} callers",
    "bulk": f"accepted in calls of {BULK:,}",
    "lives": "accepted, started and finished with a result of 2 KB",
}


def accepts(yard):
    """Accepting: one by one, alone, in bulk."""
    single, alone, append, bulk = [], [], [], []
    with others(yard.upstream.process) as load:
        for _ in range(yard.rounds):
            server = yard.queue(yard.upstream.address, SHUT)
            yard.jobs(server, CALLERS, seconds=1)
            single.append(yard.jobs(server, CALLERS)["rate"])
            alone.append(yard.jobs(server, 1)["p50_us"])
            append.append(synced_append(yard.bench.directory))
            bulk.append(yard.jobs(server, 4, BULK)["rate"])
            yard.ended(server)
    share = [round(load["share"], 3)]
    wrk = f"llmq serve; wrk -t1 -c%s -d{yard.seconds}s -s {LUA} http://ADDRESS"
    return [
        figure("single", f"{WORDS['single']}, over HTTP", single, "jobs/s", wrk % CALLERS,
               (">=", 13_000), others=share),
        *beside(yard, single, "single", 1.3, "BullMQ"),
        figure("alone", "p50 of a lone caller's accept, over HTTP", alone, "µs", wrk % 1),
        figure("append", "p50 of 4 KB appended and synced", append, "µs", "python"),
        figure("alone ratio", "a lone accept over a synced append",
               [a / b for a, b in zip(alone, append)], "x", wrk % 1, ("<=", 2)),
        figure("bulk", f"{WORDS['bulk']}, bodies of 1 KB, over HTTP", bulk, "jobs/s",
               f"LLMQ_BENCH_MANY={BULK} " + wrk % 4, (">=", 45_000)),
        *beside(yard, bulk, "bulk", 1.4),
    ]


def synced_append(directory, times=400):
    """Microseconds of 4 KB appended and synced, the median."""
    path = directory / "appended"
    took = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in range(times):
            began = time.monotonic_ns()
            os.write(file, b"x" * 4096)
            os.fdatasync(file)
            took.append((time.monotonic_ns() - began) / 1000)
    finally:
        os.close(file)
        path.unlink()
    return statistics.median(took)


def drained(server, since):
    """Seconds until everything accepted before is done: a last job stands behind all of it."""
    last = {"endpoint": "/v1/chat/completions", "body": {"model": "bench", "messages": []}}
    job = server.post("/api/requests", last)["queue_id"]
    while not (state := server.get(f"/api/requests/{job}?wait=5"))["finished_at"]:
        if time.monotonic() - since > 600:
            sys.exit("scripts/bench: the queue does not drain")
    if state["status"] != "completed":
        sys.exit(f"scripts/bench: the last job is {state['status']}")
    return time.monotonic() - since


def lives(yard):
    """Whole lives: a backlog accepted in bulk and worked through over HTTP."""
    rates = []
    for _ in range(yard.rounds):
        server = yard.queue(yard.long.address)
        began = time.monotonic()
        jobs = yard.jobs(server, 2, BULK, 1 if yard.quick else 2)["jobs"]
        rates.append(jobs / drained(server, began))
        yard.ended(server)
    inside, in_line = inner_lives(yard)
    command = f"llmq serve; LLMQ_BENCH_MANY={BULK} wrk -t1 -c2 -d2s -s {LUA} http://ADDRESS"
    return [
        figure("lives over HTTP", f"{WORDS['lives']}, over HTTP, the upstream another process",
               rates, "jobs/s", command),
        figure("lives", f"{WORDS['lives']}, the store with an instant processor", inside, "jobs/s",
               INNER, (">=", 20_000)),
        figure("lives in line", "the same where each waits in line before it is started", in_line,
               "jobs/s", INNER),
        # The rivals' processors are functions of the worker's own, so ours is one too.
        *beside(yard, inside, "lives", 3),
    ]


INNER = "cargo run --release -p llmq-store-sqlite --example bench DIRECTORY 50000"


def inner_lives(yard):
    """Whole lives a second in the store alone, as its own measurement prints them: as the server
    lives them while there is room, and where each waits in line first."""
    jobs = 5_000 if yard.quick else 50_000
    started, in_line = [], []
    for turn in range(yard.rounds):
        place = yard.bench.directory / f"store-{turn}"
        place.mkdir()
        output = yard.bench.cargo("run", "--release", "-q", "-p", "llmq-store-sqlite", "--example",
                                  "bench", "--", str(place), str(jobs))
        for name, found in ("whole lives", started), ("lives that wait in line", in_line):
            found += [float(each) for each in re.findall(rf"{name}, .*: (\d+)/s", output)][-1:]
        shutil.rmtree(place)
    return started, in_line


def backlog(yard):
    """Memory and restart with jobs that wait."""
    measured = []
    for count, most in ((10_000, 30), (100_000 if yard.quick else 1_000_000, 150)):
        server = yard.queue(yard.upstream.address, SHUT)
        hand_in(server, count)
        time.sleep(SETTLED_S)
        size = server.memory_mb()
        server.process.kill()
        server.process.wait()
        again = yard.queue(yard.upstream.address, SHUT, server.home)
        if kept(yard, server.home) != count:
            sys.exit("scripts/bench: a kill changed how many jobs there are")
        command = f"llmq serve; POST /api/requests with {BULK} of 1 KB, {count // BULK} times; kill -9"
        measured += [
            figure(f"memory {count}", f"resident memory, {count:,} jobs queued {SETTLED_S} s ago", [size], "MB",
                   command, ("<", most)),
            figure(f"memory after {count}", "the same after a kill and a restart",
                   [again.memory_mb()], "MB", command, ("<", most)),
            figure(f"ready {count}", f"ready after a kill, {count:,} jobs queued",
                   [again.ready_s], "s", command, ("<", 2.5) if count >= 1_000_000 else None),
        ]
        yard.ended(again)
    return measured


def hand_in(server, count):
    """Hands in so many jobs of 1 KB, in calls of a thousand."""
    text = "Describe the place in two sentences. " * 25
    body = {"model": "bench", "messages": [{"role": "user", "content": text}], "max_tokens": 20}
    job = {"model": "bench", "endpoint": "/v1/chat/completions", "body": body}
    for _ in range(count // BULK):
        server.post("/api/requests", {"requests": [job] * BULK})


def kept(yard, home):
    """How many jobs a store holds; a look at all of it that must find nothing wrong."""
    command = [yard.bench.llmq, "store", "check", "--store", f"sqlite:{home / 'llmq.db'}",
               "--format", "json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["jobs"]


def plain(yard):
    """Plain calls beside a store with finished jobs, over those beside an empty one."""
    empty = yard.queue(yard.upstream.address)
    full = yard.queue(yard.upstream.address)
    yard.jobs(full, 4, BULK, 1)
    drained(full, time.monotonic())
    measure = lambda server: chat(yard, server)
    ratios = []
    measure(empty), measure(full)
    before = measure(empty)
    for _ in range(yard.rounds):
        mine = measure(full)
        after = measure(empty)
        ratios.append(mine / mean(before, after))
        before = after
    command = f"llmq serve; wrk -t1 -c{CALLERS} -d{yard.seconds}s -s {CHAT} http://ADDRESS"
    return [
        figure("plain", "plain calls beside a store with finished jobs, over those beside an empty one",
               ratios, "x", command, (">=", 0.95)),
    ]


def chat(yard, server):
    """Plain calls a second."""
    return yard.wrk(server, CALLERS)["rate"]
