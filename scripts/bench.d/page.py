"""The page, written from the figures and from nothing else."""

from figures import goal, number, spread

HEAD = """# Benchmarks

<!-- Written by scripts/bench; change the words in scripts/bench.d/page.py. -->

How good llmq is, measured by `scripts/bench` and written by it too: no figure here was typed by hand. `scripts/bench --compare` measures again and prints each fresh figure beside the one below; [`benchmarks.json`](https://github.com/llmq/llmq/blob/main/docs/benchmarks.json) holds them for programs, each round by itself. Figures are medians of the rounds that a part says it had, with the smallest and the largest; `(once)` is one round.

Times depend on the machine, so what counts are ratios: against a limit, or against a rival in the same run. What other programs took of the processors meanwhile is said with each part that watched it, and shows in the ranges.
"""

ABOUT = {
    "limits": (
        "Limits hold, and are used",
        "Simulated runs in virtual time: drawn limits, providers, loads and faults, judged by a model of the provider that shares no code with the limiter. Use is what is left of the time in which calls waited when the time is taken off in which the limits had room for them; the pace at which a full bucket is spent by rule is not counted as idling. The laws are about order, loss and starvation, such as: nothing less urgent goes before what is more urgent.",
    ),
    "run": (
        "Limits are used",
        "`llmq run` against `llmq mock`, two processes. Efficiency is the least time that the limits allow (the limit full at the start, and one mean answer at the end) over the time it took. A 429 is counted in the run's books and, independently, in the mock's.",
    ),
    "plan": (
        "The plan comes true",
        "`llmq plan` with the flags of the run and the mock's latency, against what the run then took. The deviation is without its sign.",
    ),
    "speed": (
        "Speed without a limit",
        "All rows against a mock that answers at once. The script for comparison does what one writes by hand: the official SDK, `asyncio`, a semaphore. Its clock starts after Python and the SDK are loaded; that of `llmq run` with the process.",
    ),
    "memory": (
        "Memory",
        "The peak of resident memory of `llmq run`, allowed 64 MB and 12 bytes a row. These rounds do not show the worst: once, while simulations took both processors beside it, peaks of several times what is allowed were seen with either number of rows.",
    ),
    "dispatcher": (
        "A decision of the dispatcher",
        "100,000 calls wait. Each step is timed over a thousand calls at once; a round's figure is the median of 60 such times. Where calls in flight bind, room comes with an answer, and its time holds both the settling of the answered call and the start of the next.",
    ),
    "library": (
        "The library",
        "A typed queue with a processor that does nothing: what is left is the queue. Overhead is the time of a request that waits for nobody. Memory is what 10,000 waiting requests with 100 bytes of parameters add.",
    ),
    "gateway": (
        "The gateway",
        "`llmq serve` beside a bare reverse proxy of some sixty lines on hyper (`crates/llmq-server/examples/bare_proxy.rs`), before an upstream that answers at once (`instant_upstream.rs`). The gateway has a processor to itself; the load and the upstream share the other. A call is a chat request of 1 KB over a kept connection. The two are measured in turns, the bare proxy before and after each round of llmq's, and a round's ratio or difference is to the mean of the two. Events of a stream carry the instant at which they were written, so their delay holds the upstream's write, the gateway and the reader's wake-up. `scripts/bench gateway --noise` puts a second bare proxy in llmq's place, which shows what the machine adds by itself.",
    ),
    "queue": (
        "The durable queue",
        "`llmq serve` over a file, every accept synced before its 202, beside other queues on a Redis that syncs every write (`appendfsync always`), each with one worker at 50 at once and a processor that does nothing but give back 2 KB. Those are called in their own process; llmq over HTTP. All share all processors. Jobs carry 1 KB.",
    ),
}

TAIL = """
## Measured elsewhere

- That every row is written once over any number of kills: the tests of `llmq-cli`.
- Line coverage: `scripts/coverage`.
"""

OFF = (
    "In the same worlds with right estimates hardly a call is refused and nearly all of the limits "
    "is used, so it is the estimates: both those that are off all the same way, until the answers "
    "have shown it, and those that are off this way and that."
)

# Why a target is missed, by part and the beginning of the figure's id; shown only if it is.
WHY = {
    ("run", "tokens-400k: efficiency"): (
        "A window's budget is thousands of these calls. The least time takes it as spent in an "
        "instant; here it takes more than a second and a half to send so many, each window opens as "
        "slowly as the one before it was spent, and the last of the four is nine tenths full."
    ),
    ("memory", "peak of"): (
        "The peak follows how busy the machine is: with other programs on all processors it was "
        "several times as large as without, with few calls in flight. The cause is not yet known."
    ),
    ("limits", "Off15: refused"): OFF,
    ("limits", "Off15: use"): OFF,
}


def render(parts):
    """The whole page."""
    text = [HEAD, verdict(parts)]
    for name, (title, about) in ABOUT.items():
        if name in parts:
            text.append(section(name, title, about, parts[name]))
    text.append(TAIL)
    return "\n".join(text)


def verdict(parts):
    """How many targets are met, and by how much the others are missed."""
    judged = [
        (name, entry)
        for name, part in parts.items()
        for entry in part["figures"]
        if "met" in entry
    ]
    missed = [(name, entry) for name, entry in judged if not entry["met"]]
    if not missed:
        return f"All {len(judged)} targets are met.\n"
    lines = [f"{len(judged) - len(missed)} of {len(judged)} targets are met. Missed:\n"]
    for name, entry in missed:
        reached = number(entry["median"], entry["unit"])
        lines.append(
            f"- {entry['what']}: {reached} ({spread(entry)}), where {goal(entry)} is the target"
            f"{by_how_much(entry)}.{seeds(entry)}{why(name, entry)}"
        )
    return "\n".join(lines) + "\n"


def by_how_much(entry):
    target = entry["target"]["value"]
    if not target:
        return ""
    judged = entry["max"] if entry["target"]["is"] == "<" else entry["median"]
    return f": off by {abs(judged / target - 1) * 100:.1f} % of it"


def seeds(entry):
    """The worlds to play again."""
    found = ", ".join(str(seed) for seed in entry.get("seeds", []))
    return f" The first seeds: {found}." if found else ""


def why(part, entry):
    for (where, begins), words in WHY.items():
        if where == part and entry["id"].startswith(begins):
            return f" {words}"
    return ""


def section(name, title, about, part):
    lines = [f"## {title}\n", f"{about}\n", "| | median | range | target | |", "|---|--:|---|---|---|"]
    for entry in part["figures"]:
        met = {True: "met", False: "**missed**", None: ""}[entry.get("met")]
        lines.append(
            f"| {entry['what']} | {number(entry['median'], entry['unit'])} | {spread(entry)} "
            f"| {goal(entry)} | {met} |"
        )
    # No more than its figures have: what is the same in every round is measured once.
    count = min(part["rounds"], max(len(entry["values"]) for entry in part["figures"]))
    rounds = "round" if count == 1 else "rounds"
    lines.append(
        f"\n`scripts/bench {name}`: {count} {rounds} on {part['date']}, "
        f"commit {part['commit']}, {part['machine']}.{contention(part)} The commands:\n"
    )
    lines.append("```sh")
    seen = []
    for entry in part["figures"]:
        for command in entry["command"].split("; "):
            line = command
            if line.startswith("llmq run"):
                line += " -o OUTPUT --summary FILE --model bench --base-url URL"
            if line.startswith("llmq mock"):
                line += " &"
            if line not in seen:
                seen.append(line)
    return "\n".join([*lines, *seen, "```\n"])


def contention(part):
    """What other programs took of the machine meanwhile."""
    shares = [share for entry in part["figures"] for share in entry.get("others", []) if share >= 0]
    if not shares:
        return ""
    low, high = (f"{share * 100:.0f} %" for share in (min(shares), max(shares)))
    said = low if low == high else f"{low} to {high}"
    return f" Other programs took {said} of the processors' time meanwhile."
