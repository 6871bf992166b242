"""What a plan says, and how it looks on the screen."""

from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from ppo_jax.chips import Chip
from ppo_jax.config import Config, ModelConfig
from ppo_jax.console import duration, shared_console
from ppo_jax.cost import Lengths, Work
from ppo_jax.memory import CATEGORIES, Memory
from ppo_jax.plan_advice import Change
from ppo_jax.text import visible

TPU_SURE = 0.75  # of its memory: experiments/bench/README.md has what the compiler needed
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Phase(NamedTuple):
    """One phase of an iteration; FLOPs and bytes are of all devices."""

    work: Work
    tokens: int  # real ones that the phase works on
    floor: float  # seconds: nothing on such devices is faster


class Plan(NamedTuple):
    experiment: str
    config: Config  # with every `auto` settled for the device
    model: ModelConfig
    chip: Chip
    devices: int
    lengths: Lengths
    phases: dict[str, Phase]
    memory: Memory  # of one device
    advice: list[Change]  # empty where it fits
    rewards: dict[str, ModelConfig] = {}  # that are models, by name
    judges: dict[str, ModelConfig] = {}  # and those of JUDGE
    unmade: tuple[str, ...] = ()  # stages to run first

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.chip.memory_bytes


def show_plan(made: Plan, *, console: Console | None = None) -> None:
    """Facts, work of each phase, memory by category, and the verdict with what to change."""
    console = console or shared_console()
    for part in (_facts(made, console), _work(made), _memory(made)):
        console.print(part)
    for line in verdict(made):
        console.print(visible(line, console.encoding), markup=False, soft_wrap=True)


def verdict(made: Plan) -> list[str]:
    """One line that says whether it fits, and one for every change that makes it fit."""
    peak, room = scaled(made.memory.peak, "B"), scaled(made.chip.memory_bytes, "B")
    share = f"{made.memory.peak / made.chip.memory_bytes:.0%}"
    if made.fits:
        lines = [f"fits: {peak} of {room} ({share}) on each {made.chip.name}"]
        if made.chip.platform == "gpu" and made.memory.peak > 0.75 * made.chip.memory_bytes:
            lines.append("JAX takes 75 % of a GPU: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95")
        if made.chip.platform == "tpu" and made.memory.peak > TPU_SURE * made.chip.memory_bytes:
            lines.append("not sure: a TPU's compiler has needed up to 1.3 times what is planned")
        return lines
    lines = [f"does NOT fit: {peak} of {room} ({share}) on each {made.chip.name}"]
    if not made.advice:
        return [*lines, "no change of these options makes it fit: a smaller model or more memory"]
    for change in made.advice:
        flags = " ".join(f"--{key} {value}" for key, value in change.values.items())
        lines.append(f"  would fit with {flags}: {scaled(change.peak, 'B')}")
    return lines


def scaled(x: float, unit: str) -> str:
    """1.5 G of something: three digits and a power of a thousand."""
    for power, letter in UNITS:
        if x >= power:
            return f"{x / power:.3g} {letter}{unit}"
    return f"{x:.3g} {unit}"


def _facts(made: Plan, console: Console) -> Table:
    table = Table(show_header=False, title="plan", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    chip, config, lengths = made.chip, made.config, made.lengths
    rates = f"{scaled(chip.flops_per_s, 'FLOP/s')}, {scaled(chip.bytes_per_s, 'B/s')}"
    facts = {
        "experiment": made.experiment,
        "model": f"{config.model.path or 'random'}, {_shape(made.model)}, "
        f"{config.model.compute_dtype}, {config.model.critic} critic",
        "devices": f"{made.devices} x {chip.name}: {scaled(chip.memory_bytes, 'B')}, {rates} "
        f"({chip.source})",
        "batch": f"{len(lengths.prompt_B)} sequences, prompts of {lengths.prompt_B.mean():.1f} "
        f"tokens, responses of {lengths.response_B.mean():.1f} (both means)",
    }
    facts |= {f"reward {name}": _shape(model) for name, model in made.rewards.items()}
    facts |= {name.replace(".", " ", 1): _shape(model) for name, model in made.judges.items()}
    if made.unmade:
        facts["not made yet"] = f"{', '.join(made.unmade)}: by the shape that it will have"
    for name, fact in facts.items():
        table.add_row(visible(name, console.encoding), visible(fact, console.encoding))
    return table


def _shape(model: ModelConfig) -> str:
    return f"{model.num_layers} layers, embedding {model.embed_dim}"


def _work(made: Plan) -> Table:
    table = Table(
        title="work of an iteration; the floor is what no program can beat, not a prediction",
        title_justify="left",
    )
    table.add_column("phase", style="bold")
    for name in ("tokens", "FLOPs", "bytes", "floor"):
        table.add_column(name, justify="right")
    for name, phase in made.phases.items():
        table.add_row(
            name,
            f"{phase.tokens:,}",
            scaled(phase.work.flops, "FLOP"),
            scaled(phase.work.bytes, "B"),
            seconds(phase.floor),
        )
    total = sum(phase.floor for phase in made.phases.values())
    table.add_row("iteration", "", "", "", seconds(total), style="bold")
    return table


def _memory(made: Plan) -> Table:
    table = Table(title="memory of each device", title_justify="left")
    table.add_column("phase", style="bold")
    for name in (*CATEGORIES, "all"):
        table.add_column(name, justify="right")
    for name, parts in made.memory.phases.items():
        sizes = [scaled(parts[category], "B") for category in CATEGORIES]
        table.add_row(name, *sizes, scaled(sum(parts.values()), "B"))
    if made.memory.host > 0:
        resting = scaled(made.memory.host, "B")
        table.caption, table.caption_justify = f"beside it, on the host: {resting}", "left"
    return table


def seconds(x: float) -> str:
    """Short times in milliseconds, long ones as a clock shows them."""
    if x < 1:
        return f"{1e3 * x:.3g} ms"
    return f"{x:.2f} s" if x < 100 else duration(x)
