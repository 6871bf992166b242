"""What was seen of a step that was compiled for chips that are not here: tables, JSON, faults."""

from collections import Counter
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ppo_jax.config import Config
from ppo_jax.console import shared_console
from ppo_jax.hlo_collectives import Collective, needless
from ppo_jax.hlo_kernels import Launches, Moved
from ppo_jax.memory_weights import Case
from ppo_jax.plan_report import scaled
from ppo_jax.text import visible
from ppo_jax.topologies import Target

SHOWN = 3  # kinds of copies that a line names
ONE_COPY = 1.1  # times its size: what else is moved is small


class Held(NamedTuple):
    """Bytes of one device. The state is given away: its outputs lie where its arguments lay."""

    params: int
    optimiser: int
    frozen: int  # base, reference and reward
    batch: int  # and scalars
    tiles: int  # what layouts add to these
    outputs: int  # beside those that lie on arguments
    temporaries: int
    code: int


class Checked(NamedTuple):
    """A compiled step; the fields after `refused` are empty where it was refused."""

    experiment: str
    config: Config  # with every `auto` settled for the devices
    case: Case
    target: Target
    mesh: dict[str, int]
    stand_ins: tuple[str, ...]  # rewards of the host
    planned: float  # bytes, by `ppo_jax.memory`
    sampler: float  # bytes of its own copy of the weights, by the same
    seconds: dict[str, float]  # trace, compile
    refused: str | None = None  # the compiler's word where it could not fit the step
    memory: Held | None = None
    host: int = 0  # bytes that rest in the memory of the host, of one device
    collectives: list[Collective] = []
    steps: list[Launches] = []  # of a token, loop by loop
    step_calls: list[dict[str, int]] = []  # of them the foreign kernels
    calls: dict[str, int] = {}  # foreign kernels in the whole program, each once
    phases: dict[str, Launches] = {}  # operations that the program lists, each once
    moved: list[Moved] = []  # weights and caches that a decode step copies
    copied: int = 0  # bytes of those that the rollout copies outside of its decode loops

    @property
    def peak(self) -> int:
        return 0 if self.memory is None else sum(self.memory)


def faults(made: Checked) -> list[str]:
    """Why the step is not as it must be, a clause each; empty where it is."""
    if made.memory is None:
        return [f"does not fit: {made.refused}"]
    found, limit = [], made.target.chip.memory_bytes
    if made.peak > limit:
        found.append(
            f"does not fit: {scaled(made.peak, 'B')} of {scaled(limit, 'B')} on each "
            f"{made.target.chip.name}"
        )
    if not made.steps:
        found.append("no decode loop was found in the program: nothing can be said of it")
    for one in needless(made.collectives):
        found.append(
            f"the decode loop holds {one.count} {one.kind} over {'+'.join(one.axes)}, which it "
            "need not"
        )
    if made.target.chip.platform == "gpu":
        found += _copies(made)
    return found


def _copies(made: Checked) -> list[str]:
    found = []
    if made.moved:
        size = scaled(sum(one.bytes for one in made.moved), "B")
        types = ", ".join(f"{n} x {type_}" for type_, n in _most(made.moved))
        found.append(
            f"the decode loops hold {len(made.moved)} copies of weights or caches ({size}: "
            f"{types}), which they need not"
        )
    if made.copied > ONE_COPY * made.sampler:
        found.append(
            f"before the decode loops {scaled(made.copied, 'B')} are copied, more than the "
            f"sampler's own weights ({scaled(made.sampler, 'B')})"
        )
    return found


def _most(moved: list[Moved]) -> list[tuple[str, int]]:
    """(type, how often) of the largest."""
    found = Counter(one.type for one in sorted(moved, key=lambda one: -one.bytes))
    return list(found.items())[:SHOWN]


def show_check(made: Checked, *, console: Console | None = None) -> None:
    """Facts, memory by category, collectives by phase, kernels of a token, and the verdict."""
    console = console or shared_console()
    parts = [_facts(made, console)]
    if made.memory is not None:
        parts += [_memory(made), _collectives(made), _decode(made)]
    for part in parts:
        console.print(part)
    for line in verdict(made):
        console.print(visible(line, console.encoding), markup=False, soft_wrap=True)


def verdict(made: Checked) -> list[str]:
    """A line each: what is wrong, or that nothing is."""
    found = faults(made)
    if found:
        return [f"FAILED: {fault}" for fault in found]
    limit = made.target.chip.memory_bytes
    again = " or copies a weight or a cache" if made.target.chip.platform == "gpu" else ""
    return [
        f"ok: {scaled(made.peak, 'B')} of {scaled(limit, 'B')} ({made.peak / limit:.0%}) on each "
        f"{made.target.chip.name}; no decode step waits for another share of the batch{again}"
    ]


def as_json(made: Checked) -> dict[str, Any]:
    """Plain numbers: bytes, counts, seconds."""
    chip = made.target.chip
    return {
        "experiment": made.experiment,
        "target": made.target.name,
        "chip": chip._asdict(),
        "devices": made.target.count,
        "hosts": made.target.hosts,
        "mesh": made.mesh,
        "attention": made.config.model.attention,
        "rewards_replaced": list(made.stand_ins),
        "seconds": made.seconds,
        "memory": None if made.memory is None else made.memory._asdict() | {"peak": made.peak},
        "host_memory": made.host,
        "planned_peak": made.planned,
        "refused": made.refused,
        "collectives": [one._asdict() for one in made.collectives],
        "decode_steps": [step._asdict() for step in made.steps],
        "decode_calls": made.step_calls,
        "phases": {name: listed._asdict() for name, listed in made.phases.items()},
        "custom_calls": made.calls,
        "copied_in_decode": [one._asdict() for one in made.moved],
        "copied_before_decode": {"bytes": made.copied, "sampler_weights": made.sampler},
        "faults": faults(made),
    }


def _facts(made: Checked, console: Console) -> Table:
    table = Table(show_header=False, title="compiled, not run", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    target, config, model = made.target, made.config, made.case.model
    hosts = "" if target.hosts == 1 else f" on {target.hosts} hosts"
    rewards = "the experiment's own"
    if made.stand_ins:
        names = ", ".join(made.stand_ins)
        rewards = f"{names}: of the host, in its place the step counts tokens (one program)"
    facts = {
        "experiment": made.experiment,
        "model": f"{config.model.path or 'random'}, {model.num_layers} layers, embedding "
        f"{model.embed_dim}, vocabulary {model.vocab_size}, {config.model.compute_dtype}, "
        f"{config.model.critic} critic, attention {config.model.attention}",
        "devices": f"{target.name}: {target.count} x {target.chip.name}{hosts}, mesh "
        + " x ".join(f"{name} {size}" for name, size in made.mesh.items()),
        "batch": f"{config.rollout.batch_size} sequences, prompts of at most {made.case.width} "
        f"tokens, responses of at most {config.rollout.max_new_tokens}",
        "reward": rewards,
        "seconds": f"traced in {made.seconds['trace']:.0f}, compiled in "
        f"{made.seconds['compile']:.0f}, on this machine",
    }
    if made.calls:
        facts["foreign kernels"] = _listed(made.calls)
    for name, fact in facts.items():
        table.add_row(name, visible(fact, console.encoding))
    return table


def _listed(calls: dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in calls.items())


def _memory(made: Checked) -> Table:
    table = Table(title="memory of each device", title_justify="left")
    assert made.memory is not None
    for name in (*made.memory._fields, "peak", "limit", "planned", "on the host"):
        table.add_column(name, justify="right")
    limit = made.target.chip.memory_bytes
    sizes = (*made.memory, made.peak, limit, made.planned, made.host)
    table.add_row(*(scaled(size, "B") for size in sizes))
    return table


def _collectives(made: Checked) -> Table:
    table = Table(
        title="collectives of an iteration on each device (in the decode loop: of a token)",
        title_justify="left",
    )
    for name in ("phase", "kind", "over"):
        table.add_column(name)
    for name in ("times", "bytes"):
        table.add_column(name, justify="right")
    for one in made.collectives:
        phase = f"{one.phase}, decode loop" if one.decoding else one.phase
        least = ">= " if one.at_least else ""
        count, size = f"{least}{one.count:,}", f"{least}{scaled(one.bytes, 'B')}"
        table.add_row(phase, one.kind, "+".join(one.axes), count, size)
    if not made.collectives:
        table.add_row("none", "", "", "0", "0 B")
    return table


def _decode(made: Checked) -> Table:
    gpu = made.target.chip.platform == "gpu"
    what = "kernels" if gpu else "operations"
    table = Table(title=f"{what} of a token, loop by loop", title_justify="left")
    for name in (what, "fusions", "copies", "copied"):
        table.add_column(name, justify="right")
    table.add_column("foreign kernels among them", overflow="fold")
    for step, calls in zip(made.steps, made.step_calls, strict=True):
        size = scaled(step.copy_bytes, "B")
        counts = map(str, (step.kernels, step.fusions, step.copies))
        table.add_row(*counts, size, _listed(calls))
    size = scaled(sum(one.bytes for one in made.moved), "B")
    table.caption = (
        f"weights and caches copied in them: {len(made.moved)}, {size}; before them "
        f"{scaled(made.copied, 'B')}, of which the sampler's own weights "
        f"{scaled(made.sampler, 'B')}"
    )
    table.caption_justify = "left"
    return table
