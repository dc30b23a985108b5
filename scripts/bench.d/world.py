"""Processes to measure: the command, the mock beside it, and what else the machine does."""

import contextlib
import functools
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

TICKS = os.sysconf("SC_CLK_TCK")


class Bench:
    """What every measurement needs: the binary, a directory for its files, the rounds."""

    def __init__(self, root, binary, quick, commit=None):
        self.root = root
        self.commit = commit or self.head()
        self.rounds = 1
        self.quick = quick
        self.noise = False
        self.worlds = None
        self.family = None
        self.given = binary and pathlib.Path(binary).resolve()
        self.kept = {}
        self._directory = tempfile.TemporaryDirectory(prefix="llmq-bench-")
        self.directory = pathlib.Path(self._directory.name)
        self.started = time.strftime("%Y-%m-%d", time.gmtime())

    @functools.cached_property
    def llmq(self):
        """The release build, copied so that a build meanwhile does not change it."""
        built = self.given
        if not built:
            self.cargo("build", "--release", "-p", "llmq-cli")
            target = os.environ.get("CARGO_TARGET_DIR", self.root / "target")
            built = pathlib.Path(target) / "release" / "llmq"
        return shutil.copy(built, self.directory / "llmq")

    def cargo(self, *arguments, **environment):
        """Runs cargo as the other scripts do and gives its standard output."""
        lib = self.root / "scripts" / "lib.sh"
        script = 'source "$0"; exec cargo "$@"'
        # lib.sh finds the repository through its own path.
        done = subprocess.run(
            ["bash", "-c", script, str(lib), *arguments],
            cwd=self.root,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"scripts/bench: cargo {' '.join(arguments)} failed")
        return done.stdout

    def circumstances(self):
        """When, of what and on what."""
        return {
            "date": self.started,
            "commit": self.commit,
            "machine": machine(),
            "rounds": self.rounds,
        }

    def head(self):
        """The commit that is measured; a plus if the sources have changed since."""

        def git(*arguments):
            command = ["git", "-C", self.root, *arguments]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()

        changed = git("status", "--porcelain", "--", "crates/*/src", "Cargo.toml")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")

    @contextlib.contextmanager
    def mock(self, *flags):
        """A mock as a process of its own, until the block ends."""
        process = subprocess.Popen(
            [self.llmq, "mock", "--listen", "127.0.0.1:0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            line = process.stdout.readline()
            if not (address := re.search(r"http://[\d.:]+", line)):
                sys.exit(f"scripts/bench: the mock did not start: {line}")
            yield Mock(process, address.group())
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()

    def run(self, mock, *flags):
        """One `llmq run` against `mock`; what its summary says, and how it went."""
        output = self.directory / "out.jsonl"
        summary = self.directory / "summary.json"
        for old in self.directory.glob("*out.jsonl*"):
            old.unlink()
        environment = {**os.environ, "OPENAI_API_KEY": "none"}
        with others(mock.process) as load:
            began = time.monotonic()
            process = subprocess.Popen(
                [self.llmq, "run", *flags, "-o", output, "--summary", summary]
                + ["--base-url", f"{mock.url}/v1", "--model", "bench", "--progress", "none", "-q"],
                env=environment,
                cwd=self.root,
            )
            peak = watch(process)
            wall = time.monotonic() - began
        if process.returncode:
            sys.exit(f"scripts/bench: llmq run ended with {process.returncode}: {flags}")
        return {
            **json.loads(summary.read_text()),
            "wall_s": wall,
            "peak_mb": peak,
            "others": load["share"],
            "mock": mock.report(),
        }

    def plan(self, *flags):
        """What `llmq plan` foretells."""
        command = [self.llmq, "plan", *flags, "--model", "bench", "--format", "json"]
        done = subprocess.run(command, cwd=self.root, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)


class Mock:
    """A running mock."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    def report(self):
        """Its books."""
        with urllib.request.urlopen(f"{self.url}/mock/report") as answer:
            return json.load(answer)


def watch(process):
    """Waits for a process to end; its peak resident memory in MB, where the system tells."""
    peak = 0
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if found := re.search(r"VmHWM:\s+(\d+)", status.read_text()):
                peak = max(peak, int(found.group(1)))
        time.sleep(0.05)
    return peak * 1024 / 1e6


@contextlib.contextmanager
def others(*ours):
    """Which share of the processors went to programs that are not ours; -1 if nobody knows."""
    load = {"share": -1.0}
    before = busy(ours)
    yield load
    after = busy(ours)
    if before and after:
        used, total, own = (new - old for new, old in zip(after, before))
        load["share"] = max(0.0, used - own) / max(total, 1)


def busy(processes):
    """(ticks in use, all ticks, ticks of ours and our ended children)."""
    try:
        row = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ticks = [int(value) for value in row]
        own = sum(os.times()[:4]) * TICKS
        for process in processes:
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1]
            own += sum(int(value) for value in fields.split()[11:13])
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks), own
    except OSError:
        return None


def machine():
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text()):
            model = found.group(1)
    return f"{os.cpu_count()} cores of {model}, {platform.system()}"
