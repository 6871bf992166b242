"""A reward model inside the compiled step: what an experiment says to have one."""

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import LearnedReward


def learned_reward(path: str = "@reward-model", *, name: str = "reward_model") -> LearnedReward:
    """The reward model at `path` as a reward on the device: its score of each response, [B].

    `path` is `@reward-model`, what `ppo-jax reward-model` has made of the same experiment, another
    such run (RUN, RUN@best, RUN@STEP), or a Hugging Face folder or hub id of a sequence classifier
    of one output, of any supported family. It reads prompt and response as the policy's tokens, so
    both must have the same vocabulary, which is checked when the run is opened. Its weights are
    arguments of the step, in the compute dtype and shared over the mesh as the policy's are, and it
    reads the rollout in as many parts as an update does.

    A run's score is that of the state after the response's last token, its EOS where it ended,
    normalised: 0 on average over the held-out responses it was made with, of standard deviation 1.
    A classifier's is its own: of the state after the last token that is not its padding token, as
    transformers reads it.

    Raises `ConfigError` for an empty path or name.
    """
    if not path or not name:
        raise ConfigError(f"reward {name!r}: path={path!r}: expected a model's path and a name")
    return LearnedReward(name, path)
