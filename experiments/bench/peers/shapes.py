"""The workloads that we and the peers run, in plain Python: read inside of every environment."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Model, lengths and optimiser steps of one PPO iteration."""

    layers: int
    embed: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    prompts: int  # sequences an iteration
    prompt_tokens: tuple[int, int]  # shortest, longest
    new_tokens: int  # at most
    stop_ids: tuple[int, ...] = ()  # none: every response is as long as it may be
    tied: bool = False  # input and output embeddings
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-6  # small where a drift would change the lengths
    folder: str | None = None  # Hugging Face folder of the weights; None: random
    family: str = "llama"  # of random weights
    dtype: str = "float32"  # of the products
    device: str = "cpu"  # where it is run when none is named: cpu or cuda
    checkpointing: bool = False  # the peer's: a layer's activations are computed again

    @property
    def eos(self) -> int | None:
        """The first id that ends a response."""
        return self.stop_ids[0] if self.stop_ids else None

    @property
    def stops(self) -> int:
        """How many ids end a response."""
        return len(self.stop_ids)

    @property
    def steps(self) -> int:
        """Optimiser steps an iteration."""
        return self.epochs * self.minibatches

    @property
    def longest(self) -> int:
        return self.prompt_tokens[1] + self.new_tokens


W1 = Shape(
    *(4, 256, 4, 4, 1024, 1024),
    prompts=64,
    prompt_tokens=(32, 32),
    new_tokens=64,
    learning_rate=1e-5,
)
# One id in a hundred ends a response: lengths are geometric with a mean of about 100.
G1 = Shape(
    *(24, 896, 14, 2, 4864, 151_936),
    prompts=256,
    prompt_tokens=(128, 128),
    new_tokens=256,
    stop_ids=tuple(range(151_936 - 1519, 151_936)),
    tied=True,
    family="qwen2",
    dtype="bfloat16",
    device="cuda",
    checkpointing=True,
)
SHAPES = {
    "W1": W1,
    "W2": Shape(
        *(8, 512, 8, 8, 2048, 8192),
        prompts=16,
        prompt_tokens=(64, 64),
        new_tokens=128,
        learning_rate=1e-5,
    ),
    # One id in 24 ends a response: lengths are geometric with a mean of about 24.
    "W3": Shape(
        *(4, 256, 4, 4, 1024, 24),
        prompts=64,
        prompt_tokens=(16, 16),
        new_tokens=256,
        stop_ids=(1,),
    ),
    "W4": Shape(
        *(30, 576, 9, 3, 1536, 49152),
        prompts=16,
        prompt_tokens=(8, 32),
        new_tokens=48,
        stop_ids=(2,),
        tied=True,
        folder="~/.cache/ppo_jax/models/smollm2-135m",
    ),
    "G1": G1,
    # For trying the runners out: all that W1 needs, and all that G1 needs, small and on the CPU.
    "T": Shape(2, 64, 4, 4, 128, 128, 8, prompt_tokens=(8, 8), new_tokens=8, epochs=2),
    "TG": replace(
        G1,
        **dict(layers=2, embed=64, heads=4, kv_heads=2, mlp=128, vocab=512, prompts=8),
        prompt_tokens=(8, 8),
        new_tokens=32,
        stop_ids=tuple(range(448, 512)),
        device="cpu",
    ),
}
# What must be equal on both sides for a ratio of their times to mean anything.
COMPARED = (
    *("layers", "embed", "heads", "kv_heads", "mlp", "vocab", "tied"),
    *("prompts", "prompt_tokens", "new_tokens", "stops", "epochs", "minibatches"),
)


def compared(shape: Shape) -> dict[str, Any]:
    """The fields of `COMPARED`, as JSON gives them back."""
    return json.loads(json.dumps({name: getattr(shape, name) for name in COMPARED}))


def make_prompts(shape: Shape, count: int, seed: int = 0) -> list[list[int]]:
    """Random token ids of evenly spread lengths, free of the ids 0 to 2 (pad, EOS and the like)."""
    rng = random.Random(seed)
    shortest, longest = shape.prompt_tokens
    lengths = [shortest + i % (longest - shortest + 1) for i in range(count)]
    rng.shuffle(lengths)
    return [[rng.randrange(3, shape.vocab) for _ in range(length)] for length in lengths]


def read_prompts(path: str | Path | None, shape: Shape) -> list[list[int]]:
    """The prompts in a file, a JSON list of token ids a line; random ones where there is none."""
    if path is None:
        return make_prompts(shape, 4 * shape.prompts)
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_prompts(path: str | Path, prompts: list[list[int]]) -> None:
    Path(path).write_text("".join(f"{json.dumps(ids)}\n" for ids in prompts), encoding="utf-8")
