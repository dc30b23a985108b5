"""A figure: the values of all rounds, their median and range, and the target they are held to."""

import statistics


def figure(id, what, values, unit, command, target=None, **more):
    """One figure. `target` is `(">=", 0.98)` or `("<=", 1)` for the median, `("=", 0)` or
    `("<", 64)` for every round. None: a figure that explains another one."""
    values = [float(value) for value in values]
    entry = {
        "id": id,
        "what": what,
        "unit": unit,
        "median": tidy(statistics.median(values)),
        "min": tidy(min(values)),
        "max": tidy(max(values)),
        "values": [tidy(value) for value in values],
        "command": command,
        **more,
    }
    if target:
        op, bound = target
        judged = max(values) if op in ("=", "<") else statistics.median(values)
        entry["target"] = {"is": op, "value": bound}
        entry["met"] = {">=": judged >= bound, "<=": judged <= bound, "<": judged < bound,
                        "=": judged == bound}[op]
    return entry


def tidy(value):
    """Five digits are more than any of this deserves."""
    return float(f"{value:.5g}")


def number(value, unit):
    """A number for people."""
    if unit == "share":
        return f"{value * 100:.2f} %"
    if value == int(value) or abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    return f"{text}{'' if unit in ('x', 'count') else ' ' + unit}{' ×' if unit == 'x' else ''}"


def spread(entry):
    """The range, unless all rounds agree."""
    if entry["min"] == entry["max"]:
        return "always" if len(entry["values"]) > 1 else "once"
    return f"{number(entry['min'], entry['unit'])} to {number(entry['max'], entry['unit'])}"


def goal(entry):
    """The target for people."""
    target = entry.get("target")
    if not target:
        return ""
    words = {">=": "at least ", "<=": "at most ", "<": "always under ", "=": ""}[target["is"]]
    return words + number(target["value"], entry["unit"])


def show(part, figures, committed):
    """Prints figures below the commands that measured them, each beside the committed one."""
    print(f"\n{part}")
    said = None
    before = {entry["id"]: entry for entry in (committed or {}).get("figures", [])}
    for entry in figures:
        if entry["command"] != said:
            said = entry["command"]
            print(f"  $ {said}")
        line = f"  {entry['what']:<62} {number(entry['median'], entry['unit']):>14}"
        if old := before.get(entry["id"]):
            line += f"   committed {number(old['median'], old['unit']):>14}{change(old, entry)}"
        elif committed is not None:
            line += "   committed: none"
        else:
            line += f"   ({spread(entry)})"
        if "met" in entry:
            line += f"   {'ok' if entry['met'] else 'MISSED'} ({goal(entry)})"
        print(line)


def change(old, new):
    """By how much the median moved, and whether it left the committed range."""
    if not old["median"]:
        return ""
    moved = new["median"] / old["median"] - 1
    outside = not old["min"] <= new["median"] <= old["max"]
    return f" {moved:+7.1%}{' *' if outside else '  '}"
