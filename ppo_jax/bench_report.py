"""Results of `ppo-jax bench`: kept as JSON, shown as tables, compared with an earlier one."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ppo_jax.console import shared_console, show_header
from ppo_jax.errors import ConfigError, StorageError
from ppo_jax.storage import write_atomic

SCHEMA = 2  # a result's layout: counts up when a key changes its meaning
READABLE = (1, SCHEMA)  # 1 counted the full square of a row, and its last token
TIMED = "timed"  # kind of a result: beside it are those of programs compiled and never run
# column -> (key of a phase, factor, format)
COLUMNS = {
    "seconds": ("seconds", 1.0, "{:.3f}"),
    "share": ("share", 1.0, "{:.1%}"),
    "tokens/s": ("tokens_per_s", 1.0, "{:,.0f}"),
    "GFLOP": ("flops", 1e-9, "{:,.4g}"),
    "GB": ("bytes", 1e-9, "{:,.3g}"),
    "floor s": ("floor_s", 1.0, "{:.3f}"),
    "of floor": ("floor_fraction", 1.0, "{:.1%}"),
    "of matmul": ("matmul_fraction", 1.0, "{:.1%}"),
}
# The CPU's own seconds where it is the device, else the time in which operations ran.
CPU_COLUMNS = {
    "CPU s": ("cpu_s", 1.0, "{:.3f}"),
    "of floor ": ("cpu_floor_fraction", 1.0, "{:.1%}"),
    "of matmul ": ("cpu_matmul_fraction", 1.0, "{:.1%}"),
}
DEVICE_COLUMNS = {"busy s": ("busy_s", 1.0, "{:.3f}")}
# what --compare sets against each other: label -> path in the result
COMPARED = {
    "iteration, wall s": "iteration wall_s median",
    "iteration, CPU s": "iteration cpu_s median",
    "tokens/s": "iteration tokens_per_s",
    **{
        f"{phase}, {label}": f"phases {phase} {key}"
        for phase in ("rollout", "score", "update", "other", "host_gap")
        for label, key in (("wall s", "seconds"), ("CPU s", "cpu_s"))
    },
    "update, of matmul": "phases update matmul_fraction",
    "program memory, bytes": "memory program total",
    "peak memory, bytes": "memory peak_bytes",
    "slots in use": "metrics rollout/slot_use",
    "padding": "metrics update/padding",
    "matmul ceiling, FLOP/s": "ceilings flops per_second",
    "traffic ceiling, bytes/s": "ceilings bytes per_second",
}


def result_name(result: Mapping[str, Any]) -> str:
    """`<workload>-<device>-<time>.json`"""
    device = re.sub(r"[^a-z0-9]+", "-", result["environment"]["device_kind"].lower()).strip("-")
    moment = result["time"].replace(":", "-")
    return f"{result['workload']}-{device}-{moment}.json"


def save_result(folder: Path, result: Mapping[str, Any]) -> Path:
    """Add the result to the history in `folder`; StorageError if it cannot be written."""
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror})") from None
    path = folder / result_name(result)
    write_atomic(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


def load_result(path: str) -> dict[str, Any]:
    """A timing as it was written; ConfigError if the file is none, with the nearest name."""
    file = Path(path).expanduser()
    if not file.is_file():
        names = [p.name for p in file.parent.glob("*.json")]
        near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.0)
        hint = f"nearest: {file.parent / near[0]}" if near else f"no .json file in {file.parent}"
        raise ConfigError(f"--compare: no file {path}; {hint}")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--compare {path}: not JSON ({error})") from None
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema not in READABLE:
        raise ConfigError(f"--compare {path}: schema is {schema}; expected {SCHEMA}")
    # The first results have no kind: those with iterations are timings.
    kind = result.get("kind", TIMED if "iteration" in result else "compiled")
    if kind != TIMED:
        raise ConfigError(f"--compare {path}: its kind is {kind}, without times; expected {TIMED}")
    return result


def show_result(result: Mapping[str, Any], path: Path, *, console: Console | None = None) -> None:
    """Phases by columns, then the facts."""
    console = console or shared_console()
    table = Table(title=result["title"], title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("phase", style="bold", no_wrap=True)
    phases = result["phases"]
    on_cpu = result["environment"]["platform"] == "cpu"
    shown = COLUMNS | (CPU_COLUMNS if on_cpu else DEVICE_COLUMNS)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for name, phase in phases.items():
        phase = {**phase, "share": phase["seconds"] / max(result["profiled"]["wall_s"], 1e-12)}
        table.add_row(name, *_cells(phase, shown.values()))
    console.print(table)
    show_header(_facts(result, path), title=result["workload"], console=console)


def show_comparison(
    result: Mapping[str, Any], earlier: Mapping[str, Any], *, console: Console | None = None
) -> None:
    """Both results' figures and the new one over the old, and what else differs between them."""
    console = console or shared_console()
    table = Table(title=f"Against {earlier['workload']} of {earlier['time']}", title_justify="left")
    for name in ("", "then", "now", "now / then"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for label, then, now, ratio in comparison(result, earlier):
        table.add_row(label, f"{then:.4g}", f"{now:.4g}", f"{ratio:.3f}")
    console.print(table)
    for what in differences(result, earlier):
        console.print(f"differs: {what}", markup=False, soft_wrap=True)


def comparison(
    result: Mapping[str, Any], earlier: Mapping[str, Any]
) -> list[tuple[str, float, float, float]]:
    """(label, then, now, now / then) of the figures that both have and that are not 0; shares of a
    floor or a ceiling only where both count the same work."""
    rows, same = [], result["schema"] == earlier["schema"]
    for label, path in COMPARED.items():
        if path.endswith("_fraction") and not same:
            continue
        then, now = (_lookup(one, path.split()) for one in (earlier, result))
        if then and now:
            rows.append((label, then, now, now / then))
    return rows


def differences(result: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """What makes two results those of different work, or of different devices."""
    facts = ("schema", "workload", "config_digest", "overrides")
    paths = (*facts, "environment device_kind", "environment jax")
    pairs = {path: [_lookup(one, path.split()) for one in (earlier, result)] for path in paths}
    return [f"{path}: {then} -> {now}" for path, (then, now) in pairs.items() if then != now]


def _lookup(node: Any, path: Iterable[str]) -> Any:
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _cells(phase: Mapping[str, float], columns: Iterable[tuple[str, float, str]]) -> list[str]:
    return [form.format(phase[key] * by) if key in phase else "" for key, by, form in columns]


def _facts(result: Mapping[str, Any], path: Path) -> dict[str, str]:
    env, batch, memory = result["environment"], result["batch"], result["memory"]
    times, metrics, ceilings = result["iteration"], result["metrics"], result["ceilings"]
    wall, cpu = times["wall_s"], times["cpu_s"]
    seconds = result["compile"]["seconds"]
    program = {name: f"{size / 2**20:,.0f}" for name, size in memory["program"].items()}
    rate = lambda name: "{:,.1f} G/s ({:,.1f} a CPU second)".format(
        *(ceilings[name][key] * 1e-9 for key in ("per_second", "per_cpu_second"))
    )
    spread = lambda x: f"{x['median']:.3f} s ({x['min']:.3f} to {x['max']:.3f})"
    return {
        "iteration": f"{spread(wall)}, median of {len(wall['all'])}; own CPU {spread(cpu)}",
        "profiled": f"{result['profiled']['wall_s']:.3f} s, the phases' one",
        "tokens": f"{times['tokens_per_s']:,.0f} response tokens/s; {batch['sequences']} sequences,"
        f" {batch['prompt_tokens']} + {batch['response_tokens']} tokens, longest response "
        f"{batch['response_max']}, {batch['ended']:.0%} ended",
        "slots in use": f"{metrics['rollout/slot_use']:.1%} of the decode loop's slot-steps",
        "padding": f"{metrics['update/padding']:.1%} of the update's trunk FLOPs, "
        f"{metrics['update/parts']:.1f} parts a minibatch",
        "compilation": ", ".join(f"{name} {s:.1f} s" for name, s in seconds.items()),
        "program memory": f"{program.pop('total')} MiB ("
        + ", ".join(f"{name} {size}" for name, size in program.items())
        + f"); peak {memory['peak_bytes'] / 2**20:,.0f} MiB",
        "matmul ceiling": f"{rate('flops')} FLOP",
        "traffic ceiling": f"{rate('bytes')} byte",
        "device": f"{env['device_count']} x {env['device_kind']}, jax {env['jax']}, "
        f"Python {env['python']}",
        "version": _version(env["git"]) + f", config {result['config_digest']}",
        "changed": ", ".join(result["overrides"]) or "nothing",
        "result": str(path),
    }


def _version(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "no repository"
    return f"commit {git['sha'][:12]}{' and changes' if git['dirty'] else ''}"
