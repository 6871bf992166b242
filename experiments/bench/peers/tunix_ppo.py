"""google-tunix 0.1.7's PPOLearner on a workload, on the CPU, in float32, with its own sampler.

    .venv-tunix/bin/python experiments/bench/peers/tunix_ppo.py --workload W1

Its settings and what they avoid are in README.md beside this file. W4 and G1 are not offered.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import importlib.metadata
import itertools
import logging
import time
import warnings
from typing import Any

import jax
import numpy as np
import optax
from absl import logging as absl_logging
from flax import nnx
from shapes import SHAPES, Shape, compared, read_prompts
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster as clusters
from tunix.rl import utils as rl_utils
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout
from worker import Session, Stop, iteration_line, make_parser, open_session, start

Role = clusters.Role


class IdTokenizer:
    """`12 5 7` <-> [12, 5, 7]. Without an EOS its id, and the pad's, lie outside of the vocabulary,
    where nothing samples them; with one the pad is the EOS, as an id that can be embedded."""

    def __init__(self, shape: Shape) -> None:
        self.end = shape.vocab + 1 if shape.eos is None else shape.eos
        self.pad = shape.vocab if shape.eos is None else shape.eos

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in str(text).split()]

    def decode(self, ids, **_: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return self.end

    def pad_id(self) -> int:
        return self.pad


def make_model(shape: Shape, seed: int):
    """A random Qwen2. Its own initial MLPs are zero: every matrix is drawn from N(0, 0.02)."""
    config = qwen2.ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocab,
        embed_dim=shape.embed,
        hidden_dim=shape.mlp,
        num_heads=shape.heads,
        head_dim=shape.embed // shape.heads,
        num_kv_heads=shape.kv_heads,
        rope_theta=10000,
        norm_eps=1e-6,
        use_tied_embedding=shape.tied,
    )
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(seed))
    leaves, tree = jax.tree.flatten(nnx.state(model, nnx.Param))
    keys = jax.random.split(jax.random.PRNGKey(seed), len(leaves))
    drawn = [
        0.02 * jax.random.normal(key, leaf.shape, leaf.dtype) if leaf.ndim >= 2 else leaf
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    nnx.update(model, jax.tree.unflatten(tree, drawn))
    return model


def make_cluster(shape: Shape):
    """One rollout of all prompts, then epochs x minibatches Adam steps.

    No setting of the library says that: it would accumulate the minibatches of an epoch into one
    step. So the trainers are built without accumulation, and only then is the learner told how
    many minibatches to collect from a rollout.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    with mesh:
        actor, reference = make_model(shape, 0), make_model(shape, 0)
        critic = rl_utils.create_critic_model(make_model(shape, 0), seed=1)
    minibatch = shape.prompts // shape.minibatches
    training = clusters.RLTrainingConfig(
        actor_optimizer=optax.adam(shape.learning_rate),
        critic_optimizer=optax.adam(shape.learning_rate),
        eval_every_n_steps=10**9,
        max_steps=10**9,
        mini_batch_size=shape.prompts,
        train_micro_batch_size=minibatch,
        rollout_micro_batch_size=shape.prompts,
        compute_logps_micro_batch_size=minibatch,
    )
    training.gradient_accumulation_steps = None
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=shape.new_tokens,
        max_prompt_length=shape.prompt_tokens[1],
        kv_cache_size=shape.longest,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
    )
    config = clusters.ClusterConfig(
        role_to_mesh={
            role: mesh for role in (Role.ACTOR, Role.CRITIC, Role.REFERENCE, Role.ROLLOUT)
        },
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=training,
        rollout_config=rollout,
    )
    cluster = clusters.RLCluster(
        actor=actor,
        critic=critic,
        reference=reference,
        tokenizer=IdTokenizer(shape),
        cluster_config=config,
    )
    cluster.cluster_config.training_config.gradient_accumulation_steps = shape.minibatches
    return cluster


def make_learner(shape: Shape, cluster):
    config = ppo_learner.PPOConfig(
        num_iterations=shape.epochs,
        gamma=1.0,
        gae_lambda=0.95,
        beta=0.05,
        epsilon=0.2,
        clip_range_value=0.2,
        kl_method="kl",
    )
    nothing = lambda prompts, completions, **_: [0.0] * len(completions)
    return ppo_learner.PPOLearner(
        rl_cluster=cluster, ppo_config=config, reward_fns=[nothing], data_shuffle_seed=0
    )


def weights(cluster) -> tuple:
    """What policy and critic learn, (policy, critic)."""
    trainers = (cluster.actor_trainer, cluster.critic_trainer)
    policy, value = (nnx.state(trainer.model, nnx.Param) for trainer in trainers)
    return policy, value


def conduct(session: Session, cluster, learner, shape: Shape) -> None:
    """Every iteration of the learner's loop waits for a command, and is answered."""
    seen: dict[str, Any] = {}
    generate, score = cluster.generate, learner._generate_and_compute_advantage
    run_step = learner._run_global_step

    def timed_generate(*arguments, **options):
        began = time.perf_counter()
        result = generate(*arguments, **options)
        seen["generation"] = time.perf_counter() - began
        # The sampler leaves the EOS out, which is a token too.
        seen["tokens"] = sum(min(len(ids) + 1, shape.new_tokens) for ids in result.tokens)
        return result

    def timed_score(*arguments, **options):
        began = time.perf_counter()
        result = jax.block_until_ready(score(*arguments, **options))
        seen["scoring"] = time.perf_counter() - began - seen["generation"]
        return result

    def step(*arguments, **options):
        command = session.next_command()
        while command == "memory":
            session.say({"peak_tensor_bytes": None})
            command = session.next_command()
        if command is None:
            raise Stop
        steps, mark = cluster.actor_trainer.iter_steps, start()
        run_step(*arguments, **options)
        jax.block_until_ready(weights(cluster))
        whole = time.perf_counter() - mark.wall
        phases = {name: seen[name] for name in ("generation", "scoring")}
        phases["update"] = whole - sum(phases.values())
        steps = cluster.actor_trainer.iter_steps - steps
        session.say(
            iteration_line(mark, tokens=seen["tokens"], optimizer_steps=steps, phases=phases)
        )

    cluster.generate, learner._generate_and_compute_advantage = timed_generate, timed_score
    learner._run_global_step = step


def batches(prompts: list[list[int]], size: int):
    """Endless batches of `size` prompts, as the id tokenizer reads them."""
    texts = itertools.cycle(" ".join(map(str, ids)) for ids in prompts)
    while True:
        yield {"prompts": np.array(list(itertools.islice(texts, size)))}


def facts(shape: Shape, cluster) -> dict[str, Any]:
    count = lambda state: sum(leaf.size for leaf in jax.tree.leaves(state))
    policy, value = weights(cluster)
    return {
        "peer": "tunix",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("google-tunix", "jax", "flax", "optax")
        },
        "shape": compared(shape),
        "critic": "separate",
        "parameters": {"policy": count(policy), "value": count(value)},
        "dtype": str(jax.tree.leaves(policy)[0].dtype),
        "platform": "cpu",
        "threads": os.cpu_count(),
    }


def main() -> None:
    arguments = make_parser("google-tunix's PPOLearner on a workload").parse_args()
    session = open_session(arguments)
    shape = SHAPES[arguments.workload]
    if shape.folder is not None:
        raise SystemExit(f"tunix: {arguments.workload} is not offered: it needs weights of Llama")
    if (arguments.device or shape.device) != "cpu" or shape.stops > 1:
        raise SystemExit("tunix: offered on the CPU alone, and with one stop id at most")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.ERROR)
    cluster = make_cluster(shape)
    learner = make_learner(shape, cluster)
    conduct(session, cluster, learner, shape)
    prompts = read_prompts(arguments.prompts, shape)
    session.say(facts(shape, cluster))
    try:
        learner.train(batches(prompts, shape.prompts))
    except Stop:
        pass
    session.finish()


if __name__ == "__main__":
    main()
