"""Models that a plan reads before they are made: of a stage, `@sft`, whose run has not ended, the
one that it begins from. Training changes no shape and no vocabulary."""

from typing import NamedTuple

from ppo_jax.classifier import check_reads, open_classifier
from ppo_jax.config import Config
from ppo_jax.experiment import Experiment, judge_parts
from ppo_jax.loading import Adapters, Source, open_source
from ppo_jax.prepare import check_critic, open_policy
from ppo_jax.rewards.base import LearnedReward, Part, parse_rewards
from ppo_jax.stages import STAGES, has_ended, resolve, stage_run


class Models(NamedTuple):
    """What a run of an experiment is to read, before any weights."""

    policy: Source
    critic: Source | None  # its own checkpoint
    rewards: dict[str, Source]  # those that are models, by the reward's name
    judges: dict[str, Source]  # those of JUDGE, which held-out rows are for
    unmade: tuple[str, ...]  # stages whose runs have not ended


def open_models(experiment: Experiment, config: Config) -> Models:
    """Raises ConfigError where training would, but for a stage of the experiment's own that is
    still to be run."""
    path, critic_path = config.model.path, config.model.critic_path
    rewards = _learned(parse_rewards(experiment.reward))
    judges = _learned(judge_parts(experiment.judge) if config.run.eval_every is not None else [])
    named = [path, critic_path, *(reward.path for reward in (*rewards, *judges))]
    unmade = [name for name in named if name and _is_unmade(name, config, experiment)]
    if path is None or not path.startswith("@"):
        policy = open_policy(config)
    else:
        policy = open_foreseen(path, config, experiment)
    critic = None
    if critic_path is not None:
        critic = open_foreseen(critic_path, config, experiment)
        check_critic(config, critic, policy)
    opened = lambda learned: {
        reward.name: _open_reward(reward, config, policy, experiment) for reward in learned
    }
    return Models(policy, critic, opened(rewards), opened(judges), tuple(dict.fromkeys(unmade)))


def open_foreseen(path: str, config: Config, experiment: Experiment) -> Source:
    """The model at `path`; of a stage that is still to be run what it will be, without weights."""
    trust = config.model.trust_remote_code
    if not _is_unmade(path, config, experiment):
        return open_source(str(resolve(path, config, experiment.stages)), trust_remote_code=trust)
    begins = _begins(path, experiment)
    assert begins is not None
    model = begins.model
    if model.path is not None and model.path.startswith("@"):
        source = open_foreseen(model.path, config, experiment)
    else:
        source = open_source(
            model.path, model.shape, base_path=model.base_path, trust_remote_code=trust
        )
    if model.lora.rank is None:
        return source
    return source._replace(adapters=Adapters(model.lora, source))


def _learned(parts: list[Part]) -> list[LearnedReward]:
    return [part.learned._replace(name=part.name) for part in parts if part.learned is not None]


def _open_reward(
    reward: LearnedReward, config: Config, policy: Source, experiment: Experiment
) -> Source:
    if not _is_unmade(reward.path, config, experiment):
        return open_classifier(reward, config, policy, experiment.stages)
    source = open_foreseen(reward.path, config, experiment)
    check_reads(reward, source, config, policy)
    return source


def _is_unmade(path: str, config: Config, experiment: Experiment) -> bool:
    """Whether it is a stage of the file, of which it is known what it begins from, still to be
    run."""
    begins = _begins(path, experiment)
    return begins is not None and not has_ended(stage_run(path, config, experiment.stages))


def _begins(path: str, experiment: Experiment) -> Config | None:
    """The stage's config; None where there is none, or it begins from no earlier stage's model."""
    begins = {"@sft": experiment.sft, "@reward-model": experiment.reward_model}.get(path)
    if begins is None or begins.model.path not in STAGES:
        return begins
    order = list(STAGES)
    return begins if order.index(begins.model.path) < order.index(path) else None
