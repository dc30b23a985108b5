"""What is measured, part by part. Each part gives its figures."""

import csv
import json
import subprocess
import sys
import venv

from figures import figure
from gateway import gateway
from queue_part import queue
from world import others

ROWS = 42_888
TEMPLATE = "Write a two-sentence introduction to {{name}}, {{region}}, {{country}}."
CALLS = ["examples/places.csv", "--id", "id", "--template", TEMPLATE, "--param", "max_tokens=20"]
MOCK = ["--latency", "20ms", "--output-tokens", "20"]

# Name, words, rows, and the flags that the run and the mock have in common.
LIMITED = [
    ("requests-2000", "10,000 rows, `requests=2000/10s`", 10_000, ["requests=2000/10s"]),
    ("requests-5000", "all rows, `requests=5000/10s`", ROWS, ["requests=5000/10s"]),
    ("tokens-400k", "all rows, `tokens=400k/10s` alone", ROWS, ["tokens=400k/10s"]),
]


def cases(bench):
    """All of them; quickly, only one that still binds with few rows."""
    return LIMITED[:1] if bench.quick else LIMITED


def shown(*words):
    """A command as one types it."""
    return " ".join(f"'{word}'" if any(c in word for c in " {=}") else word for word in words)


def limited_rounds(bench, name, rows, limits):
    """One case of a run under a limit, all rounds; measured once, whoever asks."""
    if name not in bench.kept:
        flags = [part for limit in limits for part in ("--limit", limit)]
        if bench.quick:
            rows = min(rows, 3_000)
        run = [*CALLS, "--limit-rows", str(rows), *flags]
        results = []
        for _ in range(bench.rounds):
            with bench.mock(*MOCK, *flags) as mock:
                results.append(checked(bench.run(mock, *run), rows))
        command = f"llmq mock {shown(*MOCK, *flags)}; llmq run {shown(*run)}"
        plan = [*run, "--latency", "20ms", "--output-tokens", "20"]
        bench.kept[name] = (results, command, plan)
    return bench.kept[name]


def checked(result, rows):
    """A run that lost a row is not worth a figure."""
    finished = min(result["completed"], result["mock"]["accepted"])
    if finished != rows:
        sys.exit(f"scripts/bench: of {rows} rows the run finished {finished}")
    return result


def run(bench):
    """Efficiency and 429s under each limit."""
    measured = []
    for name, words, rows, limits in cases(bench):
        results, command, _ = limited_rounds(bench, name, rows, limits)

        def take(what, get, unit, target=None):
            measured.append(
                figure(f"{name}.{unit}.{len(measured)}", f"{what}, {words}",
                       map(get, results), unit, command, target,
                       others=[round(result["others"], 3) for result in results])
            )

        take("efficiency", lambda r: r["efficiency"], "share", (">=", 0.98))
        take("429s by the run's books", lambda r: r["rate_limited"], "count", ("=", 0))
        take("429s by the mock's books", lambda r: r["mock"]["refused"], "count", ("=", 0))
        take("time", lambda r: r["elapsed_s"], "s")
        take("least time", lambda r: r["bound_s"], "s")
        take("in flight at most", lambda r: r["mock"]["in_flight_max"], "count")
    return named(measured)


def named(measured):
    """Ids that stay the same when a figure is added: the case and the first word."""
    for entry in measured:
        case = entry["id"].split(".", 1)[0]
        words = entry["what"].split(",", 1)[0]
        entry["id"] = f"{case}: {words}"
    return measured


def plan(bench):
    """What the plan foretells against what the run then takes."""
    measured = []
    for name, words, rows, limits in cases(bench):
        results, command, flags = limited_rounds(bench, name, rows, limits)
        foretold = bench.plan(*flags)["elapsed_s"]
        measured += deviation(name, words, foretold, results, command, flags)
    rows = 500 if bench.quick else 4_000
    for name, words, latency, more in [
        ("latency", "16 in flight, answers in 100 ms", "100ms", ["--concurrency", "16"]),
        ("found", "calls at once found on the way, answers in 2 s", "2s", []),
    ]:
        run_flags = [*CALLS, "--limit-rows", str(rows), *more]
        mock_flags = ["--latency", latency, "--output-tokens", "20"]
        results = []
        for _ in range(bench.rounds):
            with bench.mock(*mock_flags) as mock:
                results.append(checked(bench.run(mock, *run_flags), rows))
        flags = [*run_flags, "--latency", latency, "--output-tokens", "20"]
        foretold = bench.plan(*flags)["elapsed_s"]
        command = f"llmq mock {shown(*mock_flags)}; llmq run {shown(*run_flags)}"
        words = f"{rows:,} rows, {words}"
        measured += deviation(name, words, foretold, results, command, flags)
    return measured


def deviation(name, words, foretold, results, command, flags):
    return [
        figure(f"{name}: deviation", f"plan against run, {words}",
               [abs(foretold / result["elapsed_s"] - 1) for result in results],
               "share", f"{command}; llmq plan {shown(*flags)}", ("<=", 0.05)),
        figure(f"{name}: foretold", f"foretold, {words}", [foretold], "s",
               f"llmq plan {shown(*flags)}"),
    ]


INSTANT = ["--latency", "0ms", "--jitter", "0", "--output-tokens", "20"]


def speed(bench):
    """Rows a second without a limit, beside a script with the official SDK."""
    rows, by_hand = (3_000, 300) if bench.quick else (ROWS, 3_000)
    python = sdk(bench)
    run = [*CALLS, "--limit-rows", str(rows)]
    ours, theirs, meanwhile = [], [], []
    for _ in range(bench.rounds):
        with bench.mock(*INSTANT) as mock:
            ours.append(checked(bench.run(mock, *run), rows))
        with bench.mock(*INSTANT) as mock:
            with others(mock.process) as load:
                theirs.append(by_hand / rival(bench, python, mock, by_hand))
            meanwhile.append(round(load["share"], 3))
    rates = [rows / result["wall_s"] for result in ours]
    mock = f"llmq mock {shown(*INSTANT)}"
    command = f"{mock}; llmq run {shown(*run)}"
    script = f"{mock}; python scripts/bench.d/rival.py URL examples/places.csv {by_hand} OUTPUT"
    version = subprocess.run([python, "-c", "import openai; print(openai.__version__)"],
                             capture_output=True, text=True).stdout.strip()
    bench.kept["instant"] = ours
    return [
        figure("rate", "`llmq run`, from its start to its end, mock on the same cores",
               rates, "rows/s", command, (">=", 5_000),
               others=[round(result["others"], 3) for result in ours]),
        figure("rival", f"Python {'.'.join(map(str, sys.version_info[:2]))} with `openai` {version}, "
               "64 at a time, from its first call to its last answer", theirs, "rows/s", script,
               others=meanwhile),
        figure("ratio", "`llmq run` over the Python script, round by round",
               [a / b for a, b in zip(rates, theirs)], "x", f"{command}; {script}", (">=", 20)),
    ]


def sdk(bench):
    """A Python with the official SDK, made once."""
    place = bench.root / "target" / "bench" / "python"
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    has = subprocess.run([python, "-c", "import openai"], capture_output=True)
    if has.returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "openai"], check=True)
    return python


def rival(bench, python, mock, rows):
    """Seconds that the script takes."""
    command = [python, bench.root / "scripts" / "bench.d" / "rival.py", f"{mock.url}/v1",
               bench.root / "examples" / "places.csv", str(rows), bench.directory / "rival.jsonl"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def memory(bench):
    """Resident memory against 64 MB and 12 bytes a row."""
    measured = []
    for times in (1, 2) if bench.quick else (1, 10):
        rows = ROWS * times
        source = many(bench, times)
        run = [str(source), *CALLS[1:]]
        results = []
        for _ in range(bench.rounds):
            with bench.mock(*INSTANT) as mock:
                results.append(checked(bench.run(mock, *run), rows))
        allowed = 64 + 12 * rows / 1e6
        # The file is written for the occasion.
        said = "examples/places.csv" if times == 1 else f"places-{times}-times.csv"
        command = f"llmq mock {shown(*INSTANT)}; llmq run {shown(said, *CALLS[1:])}"
        measured.append(
            figure(f"peak of {rows}", f"peak resident memory, {rows:,} rows, no limit",
                   [result["peak_mb"] for result in results], "MB", command,
                   ("<", round(allowed, 1)),
                   others=[round(result["others"], 3) for result in results])
        )
        measured.append(
            figure(f"in flight of {rows}", f"in flight at most, {rows:,} rows, no limit",
                   [result["mock"]["in_flight_max"] for result in results], "count", command)
        )
    measured += many_in_flight(bench)
    for name, words, _, _ in LIMITED:
        if name in bench.kept:
            results, command, _ = bench.kept[name]
            measured.append(
                figure(f"peak of {name}", f"peak resident memory, {words}",
                       [result["peak_mb"] for result in results], "MB", command,
                       ("<", round(64 + 12 * results[0]["rows"] / 1e6, 1)))
            )
    return measured


def many_in_flight(bench):
    """The same while as many calls as a run allows itself wait for their answers."""
    rows = 6_000 if bench.quick else ROWS
    slow = ["--latency", "200ms", "--jitter", "0", "--output-tokens", "20"]
    run = [*CALLS, "--limit-rows", str(rows), "--concurrency", "2048"]
    results = []
    for _ in range(bench.rounds):
        with bench.mock(*slow) as mock:
            results.append(checked(bench.run(mock, *run), rows))
    command = f"llmq mock {shown(*slow)}; llmq run {shown(*run)}"
    words = f"{rows:,} rows, 2,048 in flight, answers in 200 ms"
    return [
        figure("peak of 2048 in flight", f"peak resident memory, {words}",
               [result["peak_mb"] for result in results], "MB", command,
               ("<", round(64 + 12 * rows / 1e6, 1)),
               others=[round(result["others"], 3) for result in results])
    ]


def many(bench, times):
    """The places, several times over, under ids of their own."""
    places = bench.root / "examples" / "places.csv"
    if times == 1:
        return places
    target = bench.directory / f"places-{times}-times.csv"
    with open(places, newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for turn in range(times):
            writer.writerows([f"{row[0]}-{turn}", *row[1:]] for row in rows)
    return target


def dispatcher(bench):
    """Nanoseconds of a decision while 100,000 calls wait."""
    command = "cargo bench -p llmq-dispatch --bench decision"
    rounds = [
        [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        for output in (bench.cargo(*command.split()[1:]) for _ in range(bench.rounds))
    ]
    steps = [
        ("grant", "room comes and the next call is started", ("<=", 1_000)),
        ("submit", "a call joins the line", ("<=", 1_000)),
        ("sent", "a call is dated by its send", None),
    ]
    measured = []
    for scenes in zip(*rounds):
        scene = scenes[0]["scene"]
        for step, words, target in steps:
            values = [each[f"{step}_ns"]["median"] for each in scenes]
            measured.append(
                figure(f"{scene}: {step}", f"{words}; {scene}", values, "ns", command, target)
            )
    return measured


# How the library's own words for its figures are held to targets.
LIBRARY = {
    "in flight, no limits": (">=", 200_000),
    "overhead p99, no limits": ("<=", 100),
    "waiting, polled by their submitter": ("<=", 10),
    "waiting, nobody polls": ("<=", 10),
}


def library(bench):
    """What the embedded queue costs, as its own benchmark prints it."""
    command = "cargo bench -p llmq --bench queue"
    values, units = {}, {}
    for _ in range(bench.rounds):
        for line in bench.cargo(*command.split()[1:]).splitlines():
            words = line.rsplit(None, 2)
            if len(words) != 3 or words[0].startswith("…"):
                continue
            try:
                value = float(words[1])
            except ValueError:
                continue
            values.setdefault(words[0], []).append(value)
            units[words[0]] = {"us": "µs"}.get(words[2], words[2])
    measured = []
    for what, found in values.items():
        target = next((goal for part, goal in LIBRARY.items() if part in what), None)
        measured.append(figure(what, what, found, units[what], command, target))
    return measured


# What each family of simulated worlds is held to: the share of refused calls, and the use.
FAMILIES = {
    "Steady": ("steady loads, right estimates", ("=", 0), (">=", 0.995)),
    "Mixed": ("mixed loads, right estimates", ("=", 0), (">=", 0.98)),
    "Off15": ("estimates 15 % off", ("<=", 0.001), (">=", 0.98)),
    "Off30": ("estimates 30 % off", None, None),
    "Shared": ("another client on the account", ("=", 0), None),
}


def limits(bench):
    """429s, use and broken laws over simulated runs. Virtual time and fixed seeds: one round
    says it all, and it is what is recorded."""
    bench.rounds = 1
    measured = []
    for family in [bench.family] if bench.family else FAMILIES:
        measured += of_family(bench, family)
    return measured


def of_family(bench, family):
    """One family of simulated worlds."""
    runs = bench.worlds or (100 if bench.quick else 2_500)
    command = f"cargo run --release -p llmq-sim --example limits -- {runs} {family}"
    found = json.loads(bench.cargo(*command.split()[1:]))
    words, refused, used = FAMILIES[family]
    words = f"{words}, {found['runs']:,} runs, {found['sent']:,} calls"
    ours, unit = found["ours"], "count"
    if refused != ("=", 0):
        ours, unit = ours / max(found["sent"], 1), "share"
    measured = [
        figure(f"{family}: refused", f"429s of ours, {words}", [ours], unit, command, refused),
        figure(f"{family}: use", f"use of the limits, {words}", [found["used"]], "share", command,
               used),
        figure(f"{family}: broken", f"runs that broke a law, {words}", [found["broken"]], "count",
               command, ("=", 0), seeds=found["seeds"]),
    ]
    if family == "Shared":
        crowded = "runs in which others' use cost a limit more than one 429 a window"
        measured += [
            figure(f"{family}: crowded", f"{crowded}, {words}", [found["crowded"]], "count",
                   command, ("=", 0)),
            figure(f"{family}: crowded, heard",
                   f"{crowded}, one of them of a call that was started when the first was known, "
                   f"{words}", [found["crowded_heard"]], "count", command),
        ]
    return measured


ALL = {
    "limits": limits,
    "run": run,
    "plan": plan,
    "speed": speed,
    "memory": memory,
    "dispatcher": dispatcher,
    "library": library,
    "gateway": gateway,
    "queue": queue,
}

# Rounds of each measurement, unless the caller says otherwise.
ROUNDS = {name: 5 if name == "gateway" else 3 for name in ALL}
