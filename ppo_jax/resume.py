"""Where a run goes on: at its newest sound checkpoint, if this is still that run."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax import manifest
from ppo_jax.arguments import TrainArgs
from ppo_jax.config import Config
from ppo_jax.config_io import diff, from_dict
from ppo_jax.errors import CheckpointError, ConfigError
from ppo_jax.processes import is_writer
from ppo_jax.removal import ASIDE, put_aside
from ppo_jax.run_folder import RunFolder, read_status

# What may differ between the parts of one run without a word: it alters nothing that is computed.
FREE = frozenset(
    f"run.{name}"
    for name in (
        "dir progress profile_after samples show_prompts checkpoint_every checkpoint_minutes keep "
        "keep_best eval_every grace compile_cache tensorboard"
    ).split()
) | {
    "model.trust_remote_code",
    "parallel.offload",
    "data.path",  # whose content is compared instead
    "reward.timeout",
}
# What may differ likewise, but not to the last bit.
INEXACT = (
    "data.eval_path data.eval_rows "  # whose prompts may be longer: then all are padded to them
    "reward.workers reward.row_timeout parallel.data parallel.fsdp parallel.tensor parallel.rollout"
).split()
# What the checkpoint itself depends on, its shape or what its counters stand for.
STRUCTURAL = (
    "model.path model.base_path model.critic_path model.shape model.scan_layers model.critic "
    "model.lora data rollout.batch_size rollout.samples_per_prompt reward.reference ppo.advantage "
    "optim.adam run.seed"
).split()
CONTENTS = {  # fact -> what has another content
    "data": "data.path: the file",
    "eval_data": "data.eval_path: the file",
    "tokenizer": "the tokenizer",
    "weights": "model.path: the weights",
    "critic_weights": "model.critic_path: the weights",
    "reward_weights": "a reward model: the weights",
    "kind": "what is trained",
}
PATHS = {  # fact -> keys that name what it is of
    "weights": ("model.path", "model.base_path"),
    "critic_weights": ("model.critic_path",),
}


class Changes(NamedTuple):
    """Lines that say what is not as the checkpoint has it."""

    structural: list[str]  # that checkpoint cannot be gone on from
    harmless: list[str]  # it can, on purpose
    inexact: list[str]  # goes on, but not bit for bit


def find_start(
    path: Path,
    facts: Mapping[str, Any],
    args: TrainArgs,
    warn: Callable[[str], None],
    before: int | None = None,
) -> int | None:
    """The step to go on from, None where there is none yet, or none before the given one; its files
    have been verified.

    Damaged checkpoints newer than it are put aside. Raises CheckpointError if there are only
    damaged ones (which stay as they are), if there is one and `args.strict_resume`, or if the run
    has changed.
    """
    candidates = sorted({*manifest.steps(path), *_unrecorded(path)}, reverse=True)
    if before is not None:
        candidates = [step for step in candidates if step < before]
        if not candidates:
            return None
    for name in strangers(path) if before is None else ():
        warn(f"{path / name}: not a checkpoint of this run, left alone")
    if not candidates:
        _check_none_is_aside(path)
        return None
    damaged: list[tuple[int, CheckpointError]] = []
    for step in candidates:
        try:
            said = _check_unchanged(path, step, facts, args.allow_config_change)
            manifest.verify(path, step)
        except (_Changed, manifest.OtherFormat):
            raise
        except CheckpointError as error:
            if args.strict_resume:
                raise CheckpointError(f"step {step}: {error} (--strict_resume)") from None
            damaged.append((step, error))
            continue
        for number, error in damaged if is_writer() else ():
            aside = put_aside(path, number)
            warn(f"step {number}: {error}; put aside as {aside.name}, going on from step {step}")
        for line in said:
            warn(line)
        return step
    raise CheckpointError(
        f"{path}: no checkpoint can be used, and none is replaced by a new start: "
        + "; ".join(f"step {step}: {error}" for step, error in damaged)
    )


class _Changed(CheckpointError):
    """The checkpoint is sound, but of another run."""


def _check_unchanged(path: Path, step: int, facts, allow: bool) -> list[str]:
    """What there is to say about a checkpoint that this run may go on from."""
    then = manifest.read_record(path, step)["facts"]
    try:
        changes = compare(then, facts)
    except ConfigError as error:  # of another version, perhaps
        raise _Changed(f"{manifest.record_path(path, step)}: {error}") from None
    if changes.structural:
        raise _Changed(
            f"{path}: step {step} cannot be gone on from: {', '.join(changes.structural)}; "
            "choose another --run.cell or --run.dir"
        )
    said = ", ".join(changes.harmless)
    if changes.harmless and not allow:
        raise _Changed(
            f"{path}: step {step} was made with another configuration: {said}; to go on with the "
            "new one give --allow_config_change, or choose another --run.cell"
        )
    lines = []
    if changes.harmless:
        lines.append(f"step {step} goes on with another configuration: {said}")
    if changes.inexact:
        changed = ", ".join(changes.inexact)
        lines.append(f"step {step} is restored exactly, but goes on not bit for bit: {changed}")
    return lines


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """What differs between a checkpoint's facts and a run's. Raises ConfigError if the
    checkpoint's config is none."""
    old, new = (from_dict(Config, facts.get("config"), where="config") for facts in (then, now))
    free = set(FREE)
    if old.optim.schedule == new.optim.schedule == "constant" and old.warmups == new.warmups:
        free.add("run.iterations")
    for fact, keys in PATHS.items():  # other names of the same files
        if then.get(fact) is not None and then[fact] == now[fact]:
            free.update(keys)
    lines = [line for line in diff(old, new) if line.split(":")[0] not in free]
    inexact = [line for line in lines if _under(line.split(":")[0], INEXACT)]
    rest = [line for line in lines if line not in inexact]
    structural = [line for line in rest if _under(line.split(":")[0], STRUCTURAL)]
    harmless = [line for line in rest if line not in structural]
    for name, what in CONTENTS.items():
        if name in then and then[name] != now.get(name):
            structural.append(f"{what} is not what it was")
    if None not in (then.get("reward"), now["reward"]) and then["reward"] != now["reward"]:
        # Pythons differ in how they write down the same code.
        same_python = then.get("versions", {}).get("python") == now["versions"].get("python")
        kind = harmless if same_python else inexact
        kind.append("the experiment's code is not what it was")
    inexact += [
        f"{name} {old[name]} -> {value}"
        for kind in ("devices", "versions", "compilers")
        for old in [then.get(kind, {})]
        for name, value in now[kind].items()
        if name in old and old[name] != value  # an older version recorded less
    ]
    if then.get("together", False) != now.get("together", False):
        inexact.append("now alone" if then.get("together") else "now with other runs in a program")
    if then.get("code") != now["code"]:
        inexact.append("ppo_jax's code is not what it was")
    return Changes(structural, harmless, inexact)


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _unrecorded(path: Path) -> list[int]:
    """Steps that Orbax finished, without a record: lost, or of a version that made none."""
    found = path.iterdir() if path.is_dir() else ()
    return [
        step
        for folder in found
        if (step := manifest.step_of(folder)) is not None
        and folder.name == str(step)
        and (folder / manifest.ITEM / "_METADATA").is_file()
        and not manifest.marker_path(path, step).exists()
    ]


def strangers(path: Path) -> list[str]:
    """Names under `path` that are no checkpoint's, unfinished and put aside ones included."""
    mine = {*manifest.steps(path), *_unrecorded(path)}
    mine |= {step for p in path.glob("*.unfinished") if (step := manifest.step_of(p)) is not None}
    known = {name for step in mine for name in (str(step), f"{step}.json", f"{step}.unfinished")}
    found = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    return [name for name in found if name not in known and ASIDE not in name]


def check_nothing_lost(folder: RunFolder) -> None:
    """CheckpointError for a run without a checkpoint that had saved one."""
    saved = read_status(folder).get("saved")
    if saved:
        raise CheckpointError(
            f"{folder.checkpoints}: step {saved} was saved, as status.json says, and is not there: "
            "put it back, or remove the run folder to begin anew"
        )


def _check_none_is_aside(path: Path) -> None:
    aside = sorted(p.name for p in path.glob(f"*{ASIDE}*"))
    if aside:
        raise CheckpointError(
            f"{path}: no checkpoint is left but damaged ones ({', '.join(aside)}); remove the run "
            "folder to begin anew"
        )
