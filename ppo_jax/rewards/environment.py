"""What an environment pays, as a reward on the device."""

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.length import no_tables
from ppo_jax.types import Array, PyTree, Rollout


def environment_reward(name: str = "environment") -> DeviceReward:
    """The rewards of the experiment's ENVIRONMENT, float32 [B, T]: what each action earned, at its
    last token. Raises `ConfigError`, when the step is traced, without an ENVIRONMENT."""

    def score(rollout: Rollout, columns: dict[str, Array], tables: PyTree) -> Array:
        if rollout.env_rewards_BT is None:
            raise ConfigError(f"reward {name}: the experiment names no ENVIRONMENT")
        return rollout.env_rewards_BT

    return DeviceReward(name, score, no_tables)
