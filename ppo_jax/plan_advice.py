"""What to change where an experiment does not fit: each option alone, then all of them together.

Every proposal has been held against the same memory model: applied, it fits.
"""

from typing import NamedTuple

from ppo_jax.config import Config, replace
from ppo_jax.memory import memory_of
from ppo_jax.memory_weights import Case

RANKS = (64, 16, 4)  # of adapters
SMALLEST_CHUNK = 16  # tokens: below, the head's products are too thin
SHARE = 0.95  # of the memory that a proposal may fill


class Change(NamedTuple):
    """Options to set, and the peak they give."""

    values: dict[str, object]  # dotted key -> value
    peak: float  # bytes


def advise(config: Config, case: Case, room: float) -> list[Change]:
    """The smallest change of each option that fits into `room` bytes; where none does alone, what
    frees the most of each together, with the least of what changes the training."""

    def peak(values: dict) -> float:
        changed = replace(config, **values)
        return memory_of(changed, case).peak

    found, frugal = [], {}
    for options in _ladders(config, case.devices, case.platform):
        peaks = [Change(values, peak(values)) for values in options]
        fitting = [change for change in peaks if change.peak <= SHARE * room]
        found += fitting[:1]
        if peaks and not any(key in _LEARNING for key in peaks[-1].values):
            frugal |= min(peaks, key=lambda change: change.peak).values
    return found or _together(config, case.devices, frugal, peak, SHARE * room)


# What another result comes of, and not only another way to it.
_LEARNING = ("model.lora.rank", "rollout.batch_size")


def _ladders(config: Config, devices: int, platform: str) -> list[list[dict]]:
    """Of each option the values worth a try, the mildest first."""
    rows = config.minibatch_size // devices
    parts = [n for n in range(config.ppo.microbatches + 1, rows + 1) if rows % n == 0]
    chunks, chunk = [], config.model.logit_chunk // 2
    while chunk >= SMALLEST_CHUNK:
        chunks.append(chunk)
        chunk //= 2
    slots, count = [], (config.rollout.slots or config.rollout.batch_size) // 2
    while count >= devices and count % devices == 0:
        slots.append(count)
        count //= 2
    remat = ["full"] if config.model.remat != "full" else []
    layers = ["scan"] if config.model.scan_layers == "unroll" else []
    ranks = RANKS if config.model.lora.rank is None else ()
    offload = _more_offload(config) if platform != "cpu" else ()
    ladders = [
        [{"ppo.microbatches": n} for n in parts],
        [{"model.logit_chunk": n} for n in chunks],
        [{"model.remat": kind} for kind in remat],
        [{"model.scan_layers": kind} for kind in layers],
        [{"rollout.slots": n} for n in slots],
        [{"parallel.offload": kind} for kind in offload],
        [_adapters(config, n) for n in ranks],
        _fewer_sequences(config, devices),
    ]
    return [ladder for ladder in ladders if ladder]


def _more_offload(config: Config) -> tuple[str, ...]:
    """What more could rest on the host: the reference, which travels once an iteration, before the
    moments, which do at each optimiser step. The base under adapters cannot."""
    if config.model.lora.rank is not None:
        return ("optimizer",) if config.parallel.offload == "none" else ()
    return {"none": ("reference", "both"), "both": ()}.get(config.parallel.offload, ("both",))


def _adapters(config: Config, rank: int) -> dict:
    """With them there is next to nothing left to rest on the host."""
    usual = {} if config.parallel.offload == "none" else {"parallel.offload": "none"}
    return {"model.lora.rank": rank} | usual


def _fewer_sequences(config: Config, devices: int) -> list[dict]:
    """Batches that the devices can still share, each half of the one before."""
    ppo, found, size = config.ppo, [], config.rollout.batch_size // 2
    parts = ppo.minibatches * ppo.microbatches * devices
    while size >= 1 and size % parts == 0 and size % config.rollout.samples_per_prompt == 0:
        slots = config.rollout.slots
        fewer = {} if slots is None or slots <= size else {"rollout.slots": size}
        found.append({"rollout.batch_size": size} | fewer)
        size //= 2
    return found


def _together(config: Config, devices: int, frugal: dict, peak, room: float) -> list[Change]:
    """All that frees memory without another result; if that is too little, with adapters, then with
    fewer sequences as well. Empty where nothing does."""
    adapters = {} if config.model.lora.rank is not None else _adapters(config, RANKS[1])
    rest = {key: value for key, value in frugal.items() if key != "parallel.offload"}
    tries = [frugal, rest | adapters]
    rest = {key: value for key, value in rest.items() if key != "rollout.slots"}
    for fewer in _fewer_sequences(config, devices):
        size = fewer["rollout.batch_size"]
        rows = size // config.ppo.minibatches // devices
        tries.append(rest | adapters | {"ppo.microbatches": rows, **fewer})
    for values in tries:
        change = Change(values, peak(values))
        if change.peak <= room:
            return [change]
    return []
