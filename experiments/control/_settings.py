"""What a control run may be told, and the configuration that the update reads it from."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from _training import Shape

from ppo_jax.config import (
    Config,
    HParams,
    ModelOptions,
    OptimOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
)
from ppo_jax.ranges import check_ranges, check_types
from ppo_jax.validate import check_config

COUNT, POSITIVE = "[1, inf)", "(0, inf)"
RANGES = {
    "seeds": COUNT,
    "environments": COUNT,
    "horizon": COUNT,
    "hidden": COUNT,
    "reward_scale": POSITIVE,
    "test_episodes": COUNT,
    "gymnasium": "[0, inf)",
}


@dataclass(frozen=True)
class Settings:
    """PPO on a control task. The defaults are PureJaxRL's for CartPole."""

    seeds: int = 10  # 0, 1, ...: trained side by side in one program
    environments: int = 4
    horizon: int = 128  # steps of each environment an iteration
    iterations: int = 977
    hidden: tuple[int, ...] = (64, 64)
    critic: Literal["separate", "shared"] = "separate"
    epochs: int = 4
    value_epochs: int | None = None  # of the critic; None: as many as the policy's
    minibatches: int = 4
    whiten_advantages: bool = True  # over the iteration's steps
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    learning_rate: float = 2.5e-4
    critic_learning_rate: float | None = None  # None: as learning_rate
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    vf_coef: float = 0.5
    entropy_coef: float | None = 0.01
    max_grad_norm: float | None = 0.5
    target_kl: float | None = None  # nats; the policy stops at 1.5 times it
    reward_scale: float = 1.0  # of the reward that is learnt from
    test_episodes: int = 100  # of each seed's last policy
    gymnasium: int = 0  # episodes of each seed's last policy in Gymnasium's own environment
    out: Path | None = None  # JSON to write; None: runs/control/<task>.json


def config_of(settings: Settings) -> Config:
    """The settings as the configuration that `ppo_update` reads."""
    shared = {field.name for field in dataclasses.fields(HParams)}
    given = {name: x for name, x in vars(settings).items() if name in shared}
    return Config(
        model=ModelOptions(path=None, critic=settings.critic),
        rollout=RolloutOptions(batch_size=settings.environments * settings.horizon),
        ppo=PPOOptions(
            epochs=settings.epochs,
            value_epochs=settings.value_epochs,
            minibatches=settings.minibatches,
            whiten_advantages=settings.whiten_advantages,
        ),
        optim=OptimOptions(schedule=settings.schedule),
        run=RunOptions(iterations=settings.iterations),
        hparams=HParams(**given, clip_low=settings.clip, clip_high=settings.clip),
    )


def checked_config(settings: Settings) -> Config:
    """As `config_of`. Raises ConfigError, one line, on the first value that no run can have."""
    check_types(settings)
    check_ranges(settings, RANGES)
    config = config_of(settings)
    check_config(config, reads_text=False)
    return config


def shape_of(settings: Settings) -> Shape:
    return Shape(settings.environments, settings.horizon, settings.hidden, settings.reward_scale)
