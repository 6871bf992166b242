"""One small policy and its rollouts, as numpy arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from builders import random_prompts, row_states, tiny_model, trunk_params
from ppo_jax.config import RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.model import unembed
from ppo_jax.rollout import sample

B, P, T = 8, 5, 9
CONFIG = tiny_model(eos_token_ids=(), pad_token_id=96)  # nothing stops unless a test says so
PARAMS = trunk_params(CONFIG, seed=0)
HEAD = {
    "kernel": 0.3 * jax.random.normal(jax.random.key(9), (CONFIG.embed_dim, 1)),
    "bias": jnp.asarray([0.5]),
}
PROMPTS = random_prompts(B, P, 1, CONFIG.vocab_size)
KEY = jax.random.key(2)


@functools.cache
def jit_sample(config, options, greedy):
    decoder = Decoder(config)
    return jax.jit(functools.partial(sample, decoder, options, greedy=greedy))


def run(prompts=PROMPTS, *, config=CONFIG, temperature=1.0, key=KEY, greedy=False, **options):
    """A rollout as numpy arrays."""
    options = RolloutOptions(**{"max_new_tokens": T} | options)
    call = jit_sample(config, options, greedy)
    return jax.device_get(call(PARAMS, HEAD, prompts, key, jnp.float32(temperature)))


def rows_of(tree, index):
    return jax.tree.map(lambda x: x[jnp.asarray(index)], tree)


def assert_same_rows(got, expected):
    """Tokens exactly, floats to rounding: another shape of the products may add differently.
    How the rows shared the decode loop's slots is another matter."""
    for name, want in expected._replace(slot_steps_B=None)._asdict().items():
        have = getattr(got._replace(slot_steps_B=None), name)
        if want is None:
            assert have is None
        elif np.issubdtype(want.dtype, np.floating):
            np.testing.assert_allclose(have, want, rtol=5e-5, atol=5e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(have, want, err_msg=name)


def assert_well_formed(rollout, config=CONFIG):
    """Mask from lengths; pad id and zeros after the last real token."""
    mask_BT = np.arange(rollout.response_ids_BT.shape[1]) < rollout.lengths_B[:, None]
    assert rollout.mask_BT.dtype == np.float32 and rollout.lengths_B.min() >= 1
    np.testing.assert_array_equal(rollout.mask_BT, mask_BT)
    assert np.all(rollout.response_ids_BT[~mask_BT] == config.pad_token_id)
    assert np.all(rollout.logprobs_BT[~mask_BT] == 0) and np.all(rollout.values_BT[~mask_BT] == 0)
    assert np.all(rollout.logprobs_BT <= 0) and np.isfinite(rollout.logprobs_BT).all()
    if rollout.kept_ids_BTK is not None:
        assert np.all(rollout.kept_ids_BTK[~mask_BT] == -1)
        chosen_BT1 = rollout.response_ids_BT[..., None]
        assert np.all(np.any(rollout.kept_ids_BTK == chosen_BT1, axis=-1)[mask_BT])


def tempered(rollout, temperature):
    """float64 logits / temperature [B, T, V] before each response token, by the training trunk."""
    ids_BS = np.concatenate([rollout.prompt_ids_BP, rollout.response_ids_BT], axis=1)
    mask_BS = np.concatenate([rollout.prompt_mask_BP, rollout.mask_BT > 0], axis=1)
    decoder = Decoder(CONFIG)
    call = jax.jit(functools.partial(row_states, decoder))
    hidden_BSD = call(PARAMS, jnp.asarray(ids_BS), jnp.asarray(mask_BS))
    logits_BSV = np.asarray(unembed(decoder, PARAMS, hidden_BSD), np.float64)
    return logits_BSV[:, P - 1 : -1] / temperature


def log_softmax(logits):
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - (logits.max(-1, keepdims=True))
    )


def chosen(logprobs_BTV, ids_BT):
    return np.take_along_axis(logprobs_BTV, ids_BT[..., None], axis=-1)[..., 0]
