"""The compiled programs around which dialogues with an environment in Python go: a turn of a batch,
in training and with held-out prompts.
"""

import dataclasses
import functools

import jax
import numpy as np

from ppo_jax.compiled import Built, program
from ppo_jax.config import HParams
from ppo_jax.decoder import Decoder
from ppo_jax.envs.host import HostEnv
from ppo_jax.evaluate import reading
from ppo_jax.host_dialogue import make_player
from ppo_jax.prepare import Run
from ppo_jax.setup import Setup
from ppo_jax.sharding import batch_sharding, fetch_own_rows, own_rows, replicated
from ppo_jax.step import sample_with, step_keys
from ppo_jax.trunks import assemble
from ppo_jax.types import Array, Prompts, PyTree, Rollout, TrainState


def make_host_sampler(run: Run, environment: HostEnv, built: Built):
    """`sample(state, frozen, step, prompts) -> Rollout` on the devices: what `sample_rollout` is
    with an environment on the device. Raises RewardError where a player fails, in all processes."""
    mesh, play = run.setup.mesh, make_player(run, environment)
    turn_of = functools.partial(_sample_turn, _of_turns(run.setup, environment))
    turn_program = program(built, "sample", turn_of, batch_sharding(mesh))

    def sample(state: TrainState, frozen: PyTree, step: int, prompts: Prompts) -> Rollout:
        own = own_rows(mesh, len(prompts.prompt_index_B))
        mine = jax.tree.map(lambda x: np.asarray(x)[own], prompts)
        write = lambda turn, transcript: turn_program(state, frozen, run.hparams, turn, transcript)
        return play(write, step, len(prompts.prompt_index_B), mine)

    return sample


def make_host_examination(
    run: Run,
    environment: HostEnv,
    number: int,
    *,
    greedy: bool = False,
    reference: Decoder | None = None,
):
    """`examine` as `evaluate.make_examination` has it, with players of its own; `number` is what
    an iteration's is to the seeds that they are reset with."""
    mesh, play = run.setup.mesh, make_player(run, environment)
    of_turns, built = _of_turns(run.setup, environment), Built({}, {})
    turn_of = functools.partial(_examine_turn, of_turns, greedy)
    turn_program = program(built, "examined_turn", turn_of, batch_sharding(mesh))
    read = program(built, "reading", reading(run.setup, reference=reference), replicated(mesh))

    def examine(params: PyTree, moving_ref, frozen: PyTree, temperature, prompts: Prompts, key):
        write = lambda turn, said: turn_program(params, frozen, temperature, turn, said, key)
        mine = fetch_own_rows(mesh, prompts)
        rollout = play(write, number, prompts.ids_BP.shape[0], mine)
        return read(params, moving_ref, frozen, temperature, rollout, prompts.columns)

    return examine


def _of_turns(setup: Setup, environment: HostEnv) -> Setup:
    """The setup whose responses are actions."""
    options = setup.config.rollout
    options = dataclasses.replace(options, max_new_tokens=environment.max_action_tokens)
    return setup._replace(config=dataclasses.replace(setup.config, rollout=options))


def _sample_turn(
    setup: Setup, state: TrainState, frozen: PyTree, hparams: HParams, turn: Array, prompts: Prompts
) -> Rollout:
    """The next action of every row, with random numbers of its own in every turn."""
    key = jax.random.fold_in(step_keys(state)[0], turn)
    return sample_with(setup, assemble(frozen, state.params), prompts, key, hparams.temperature)


def _examine_turn(
    setup: Setup, greedy: bool, params: PyTree, frozen, temperature, turn, prompts: Prompts, key
) -> Rollout:
    key, whole = jax.random.fold_in(key, turn), assemble(frozen, params)
    return sample_with(setup, whole, prompts, key, temperature, greedy=greedy)
