"""What a step is built from: the static half, beside the arrays it is handed."""

from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from ppo_jax.config import Config
from ppo_jax.decoder import Decoder
from ppo_jax.envs.base import DeviceEnv
from ppo_jax.rollout import stop_ids
from ppo_jax.scoring import Scorer
from ppo_jax.sharding import batch_devices


class Setup(NamedTuple):
    """What the step is built from; static. Weights and tables are arguments of the step."""

    config: Config
    mesh: Mesh
    decoder: Decoder
    critic: Decoder
    device_rewards: dict[str, Callable]  # name -> fn(rollout, columns, tables)
    weights: dict[str, float]  # of every reward part
    environment: DeviceEnv | None = None  # what the policy talks with; its tables: frozen["env"]
    together: bool = False  # with other runs on its device, under a `jax.vmap` over AT_ONCE

    @property
    def scorer(self) -> Scorer:
        config = self.config
        return Scorer(
            self.decoder,
            self.critic,
            stop_ids(self.decoder, config.rollout),
            config.rollout.min_new_tokens,
            chunk=config.model.logit_chunk * batch_devices(self.mesh),
        )

    @property
    def has_critic(self) -> bool:
        return self.config.ppo.advantage == "gae"
