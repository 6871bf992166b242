"""What a workload's lengths alone decide: the padding of G1's update, without its GPU."""

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.cost import trunk_flops
from ppo_jax.experiment import WORKLOADS, load_experiment
from ppo_jax.parts import ByTokens, most_rows, plan, run_part, token_sizes

BATCHES = 40


def test_padding_of_g1():
    """At most 12 % of the update's trunk FLOPs, with attention by padded rows as cuDNN reads it."""
    base = load_experiment("g1", WORKLOADS).base
    model, ppo = base.model.shape, base.ppo
    prompt, longest = base.data.max_prompt_tokens, base.rollout.max_new_tokens
    stop = len(base.rollout.stop_token_ids) / model.vocab_size
    rows, width = base.minibatch_size, prompt + longest - 1
    sizes = token_sizes(rows, width, ppo.microbatches, ppo.token_sizes)
    recipe = ByTokens(1, ppo.microbatches, sizes, most_rows(rows, ppo.microbatches, padded=True))

    @jax.jit
    def parts_of(tokens_B):
        chosen = plan(recipe, tokens_B)
        size_of = lambda part, present_B, size: (jnp.int32(size), jnp.int32(len(present_B)))
        index_P = jnp.arange(recipe.most)
        one = lambda index: run_part(recipe, chosen, index, tokens_B, size_of)
        return index_P < chosen.count, *jax.lax.map(one, index_P)

    rng, computed, real = np.random.default_rng(0), 0.0, 0.0
    for _ in range(BATCHES * ppo.minibatches):
        tokens_B = prompt + np.minimum(rng.geometric(stop, rows), longest) - 1
        there_P, size_P, rows_P = jax.device_get(parts_of(jnp.int32(tokens_B)))
        pairs = (rows_P * width**2)[there_P].sum()
        computed += trunk_flops(model, size_P[there_P].sum(), pairs)
        real += trunk_flops(model, tokens_B.sum(), (tokens_B**2).sum())
    padding = 1 - real / computed
    assert 0 < padding <= 0.12, padding
