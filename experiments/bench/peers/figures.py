"""What the answers of the workers amount to: agreement, medians, ratios, a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from worker import QUIET

Row = dict[str, Any]  # a worker's answer to `iterate`

OURS = "ours"
PARAMETERS_WITHIN = 0.01  # Tunix's Qwen2 has biases in q, k and v, 0.1 % of the weights
CLOCKS = {"cpu_s": "own CPU", "wall_s": "wall"}
MEMORY = {"tensor_bytes": "tensors", "device_bytes": "device", "rss_bytes": "resident"}
RATES = {"cpu_s": "tokens_per_cpu_s", "wall_s": "tokens_per_s"}


def disagreements(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> list[str]:
    """In what the two sides do not do the same work, by the facts that they start with."""
    name, found = peer["peer"], []
    for key, value in ours["shape"].items():
        if peer["shape"].get(key) != value:
            found.append(f"{key}: ours {value}, {name} {peer['shape'].get(key)}")
    for key in ("dtype", "platform"):
        if ours[key] != peer[key]:
            found.append(f"{key}: ours {ours[key]}, {name} {peer[key]}")
    # The policy's alone: a critic may carry the output matrix of the model that it is a copy of.
    mine, theirs = ours["parameters"]["policy"], peer["parameters"]["policy"]
    if abs(mine - theirs) > PARAMETERS_WITHIN * theirs:
        found.append(f"parameters of the policy: ours {mine}, {name} {theirs}")
    return found


def other_steps(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Optimiser steps an iteration, where they are not the same on all sides and in every one."""
    steps = {name: sorted({row["optimizer_steps"] for row in of}) for name, of in rows.items()}
    wanted = steps[OURS]
    if len(wanted) == 1 and all(found == wanted for found in steps.values()):
        return []
    said = ", ".join(f"{name} {'/'.join(map(str, found))}" for name, found in steps.items())
    return [f"optimiser steps an iteration: {said}"]


def medians(rows: Sequence[Row]) -> dict[str, Any]:
    """Medians over the rounds; the resident size is the largest of them."""
    median = lambda key: statistics.median(row[key] for row in rows)
    result = {key: median(key) for key in ("cpu_s", "wall_s", "tokens")}
    for clock, rate in RATES.items():
        result[rate] = statistics.median(row["tokens"] / row[clock] for row in rows)
    result["phases"] = {
        name: statistics.median(row["phases"][name] for row in rows) for name in rows[0]["phases"]
    }
    sizes = [row["rss_bytes"] for row in rows if row["rss_bytes"] is not None]
    result["rss_bytes"] = max(sizes, default=None)
    return result


def ratios(ours: Sequence[Row], peer: Sequence[Row], *, in_turn: bool) -> dict[str, Any]:
    """How many times as fast ours is: above 1 the peer needs more seconds for an iteration.

    `paired`, where the sides ran `in_turn`, is the median over rounds of the ratio within a round,
    with its range: what falls on both sides of a round falls out of it.
    """
    result: dict[str, Any] = {}
    for key in CLOCKS:
        mine, theirs = ([row[key] for row in rows] for rows in (ours, peer))
        result[key] = {"of_medians": statistics.median(theirs) / statistics.median(mine)}
        if in_turn:
            pairs = [b / a for a, b in zip(mine, theirs, strict=True)]
            spread = {"lowest": min(pairs), "highest": max(pairs)}
            result[key] |= {"paired": statistics.median(pairs), **spread}
    mine, theirs = medians(ours), medians(peer)
    result |= {rate: mine[rate] / theirs[rate] for rate in RATES.values()}
    return result


def memory_ratios(
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
    my_rss: int | None,
    their_rss: int | None,
) -> dict[str, float | None]:
    """Ours over the peer's: below 1 ours needs less. None where a side does not say."""
    share = lambda a, b: a / b if a and b else None
    return {
        "tensor_bytes": share(mine.get("program_bytes"), theirs.get("peak_tensor_bytes")),
        "device_bytes": share(mine.get("device_peak_bytes"), theirs.get("peak_tensor_bytes")),
        "rss_bytes": share(my_rss, their_rss),
    }


def undisturbed(rows: Mapping[str, Sequence[Row]]) -> int:
    """Rounds in which nothing else took much of the machine, on any side."""
    quiet = lambda row: row["others_cpu"] is not None and row["others_cpu"] < QUIET
    return sum(all(map(quiet, round_)) for round_ in zip(*rows.values(), strict=True))


def evaluate(
    facts: Mapping[str, Any], rows: Mapping[str, Sequence[Row]], memory: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is computed from the raw figures."""
    sides = {name: medians(of) for name, of in rows.items()}
    peers = [name for name in rows if name != OURS]
    rss = {name: side["rss_bytes"] for name, side in sides.items()}
    mine, on_cpu = memory.get(OURS, {}), facts[OURS]["platform"] == "cpu"
    return {
        # Beside a GPU the process's CPU seconds are those of dispatch and of waiting.
        "compared": "cpu_s" if on_cpu else "wall_s",
        "medians": sides,
        "speed": {name: ratios(rows[OURS], rows[name], in_turn=on_cpu) for name in peers},
        "memory": {
            name: memory_ratios(mine, memory.get(name, {}), rss[OURS], rss[name]) for name in peers
        },
        "rounds": len(rows[OURS]),
        "undisturbed_rounds": undisturbed(rows),
        "identical_arithmetic": {
            name: facts[name]["critic"] == facts[OURS]["critic"] for name in peers
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as plain text, one column a side."""
    names = list(result["facts"])
    lines = [("", *names)]
    for label, cell in (*_rows_of_facts(result), *_rows_of_figures(result)):
        lines.append((label, *(cell(name) for name in names)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    text = []
    for label, *cells in lines:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        text.append(f"{label.ljust(widths[0])}  {'  '.join(padded)}".rstrip())
    return "\n".join(text)


def _rows_of_facts(result):
    facts, rows = result["facts"], result["rows"]
    parts = lambda name: "+".join(f"{n / 1e6:.2f}" for n in facts[name]["parameters"].values())
    return [
        ("parameters, million", parts),
        ("dtype", lambda name: facts[name]["dtype"]),
        ("critic", lambda name: facts[name]["critic"]),
        ("optimiser steps an iteration", lambda name: str(rows[name][0]["optimizer_steps"])),
    ]


def _rows_of_figures(result):
    figures, memory = result["figures"], result["memory"]
    of, speed = figures["medians"], figures["speed"]
    number = lambda value, digits=2: "-" if value is None else f"{value:.{digits}f}"
    mb = lambda value: "-" if value is None else f"{value / 2**20:.0f}"
    tensors = lambda m: m.get("program_bytes", m.get("peak_tensor_bytes"))
    against = lambda name, cell: "" if name == OURS else cell()

    def paired(name, key):
        of_pairs = speed[name][key]
        return f"{of_pairs['paired']:.2f} ({of_pairs['lowest']:.2f}-{of_pairs['highest']:.2f})"

    on_cpu = figures["compared"] == "cpu_s"  # else the sides run one after the other: no pairs
    clocks = CLOCKS if on_cpu else {"wall_s": "wall"}
    rows = [
        *(
            (f"{label} s an iteration", lambda n, k=key: number(of[n][k]))
            for key, label in clocks.items()
        ),
        ("tokens an iteration", lambda name: number(of[name]["tokens"], 0)),
        ("largest resident MiB", lambda name: mb(of[name]["rss_bytes"])),
        ("tensors at peak MiB", lambda name: mb(tensors(memory.get(name, {})))),
    ]
    if not on_cpu:
        on_device = lambda m: m.get("device_peak_bytes", m.get("peak_tensor_bytes"))
        rows.append(("device at peak MiB", lambda name: mb(on_device(memory.get(name, {})))))
    for phase in ("generation", "scoring", "update"):
        rows.append((f"  {phase} wall s", lambda name, p=phase: number(of[name]["phases"].get(p))))
    for key, label in clocks.items():
        ratio = lambda name, k=key: number(speed[name][k]["of_medians"])
        rows.append((f"speed-up, {label}", lambda name, r=ratio: against(name, lambda: r(name))))
        if on_cpu:
            pair = lambda name, k=key: paired(name, k)
            rows.append((f"  round by round, {label}", lambda n, p=pair: against(n, lambda: p(n))))
    per_token = lambda name: number(speed[name][RATES[figures["compared"]]])
    second = "CPU s" if on_cpu else "s"
    rows.append((f"speed-up, tokens a {second}", lambda n: against(n, lambda: per_token(n))))
    for key, label in MEMORY.items():
        if key == "device_bytes" and on_cpu:
            continue
        share = lambda name, k=key: number(figures["memory"][name][k])
        rows.append((f"memory, {label}, ours / peer", lambda n, s=share: against(n, lambda: s(n))))
    return rows
