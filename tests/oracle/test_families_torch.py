"""Logits, gradients and greedy tokens of every family against torch's transformers, float32."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_families import saved, torch_model

from builders import row_states
from family_configs import FAMILIES, IDS, VOCAB, first_case, model_config
from ppo_jax.config import ModelConfig, RolloutOptions
from ppo_jax.decoder import Decoder
from ppo_jax.hf_tensors import tensor_slots
from ppo_jax.model import stack_layers, unembed, unstack_layers
from ppo_jax.rollout import sample
from ppo_jax.types import Prompts
from ppo_jax.weights import load_hf

B, S, T = 3, 24, 10
PADDINGS = ("none", "left", "right")
# One case a family, and those whose scan runs over layers of both kinds.
SCANNED = [
    i for i in IDS if i in map(first_case, FAMILIES) or model_config(i).local_layers is not None
]


class Pair(NamedTuple):
    """One model, theirs and ours."""

    id_: str
    theirs: torch.nn.Module
    config: ModelConfig
    params: dict


@pytest.fixture(scope="module", params=IDS, ids=str)
def pair(request, tmp_path_factory) -> Pair:
    model = torch_model(request.param)
    folder = saved(model, tmp_path_factory.mktemp("model"))
    return Pair(request.param, model, *load_hf(folder))


def batch(padding: str, seed: int, columns: int = S) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) [B, columns]; rows of mixed length, the first whole; padding holds random ids."""
    rng = np.random.default_rng(seed)
    lengths = np.array([[columns], [columns // 2 + 3], [1 if padding == "left" else 2]])
    column = np.arange(columns)
    mask = {
        "none": np.ones((B, columns), bool),
        "left": column >= columns - lengths,
        "right": column < lengths,
    }[padding]
    return rng.integers(0, VOCAB, size=(B, columns)), mask


class Result(NamedTuple):
    logits: np.ndarray
    hidden: np.ndarray
    loss: float
    inputs: np.ndarray  # gradient w.r.t. the embedded tokens, before a family's scale
    weights: dict[str, np.ndarray]  # gradient by torch's names


def torch_forward(model, ids, mask) -> Result:
    """The mean cross-entropy over neighbouring real tokens and its gradients."""
    ids, mask = torch.from_numpy(ids), torch.from_numpy(mask)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    seen = {}
    keep = lambda name: lambda module, inputs, output: seen.__setitem__(name, output)
    embedding = model.get_input_embeddings()
    hooks = [embedding.register_forward_hook(keep("inputs"))]
    hooks += [model.base_model.register_forward_hook(keep("trunk"))]
    model.zero_grad()
    logits = model(ids, attention_mask=mask.long(), position_ids=positions).logits
    seen["inputs"].retain_grad()
    both = mask[:, :-1] & mask[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][both], ids[:, 1:][both])
    loss.backward()
    for hook in hooks:
        hook.remove()
    return Result(
        logits.detach().numpy(),
        seen["trunk"].last_hidden_state.detach().numpy(),
        loss.item(),
        seen["inputs"].grad.numpy() * float(getattr(embedding, "embed_scale", 1.0)),
        {name: weight.grad.numpy() for name, weight in model.named_parameters()},
    )


@functools.partial(jax.jit, static_argnums=0)
def jax_forward(decoder, params, ids, mask):
    """The same of the production decoder."""

    def loss(params, shift_BSD):
        # Every token gets a row of its own in the table, so that there is something to shift.
        table = params["embed"]["embedding"][ids] + shift_BSD
        rows = {"embedding": table.reshape(-1, table.shape[-1])}
        own_ids = jnp.arange(ids.size).reshape(ids.shape)
        hidden = row_states(decoder, params | {"embed": rows}, own_ids, mask)
        logits = unembed(decoder, params, hidden)
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(logprobs, ids[:, 1:, None], axis=-1)[..., 0]
        both = mask[:, :-1] & mask[:, 1:]
        return -jnp.sum(jnp.where(both, chosen, 0.0)) / jnp.sum(both), (logits, hidden)

    shift_BSD = jnp.zeros((*ids.shape, decoder.config.embed_dim))
    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, (logits, hidden)), (weights, inputs) = run(params, shift_BSD)
    return logits, hidden, value, inputs, weights


def by_torch_name(config, tree) -> dict[str, np.ndarray]:
    """Leaves of a trunk's tree under torch's names, in torch's orientation."""
    named = {}
    for name, slot in tensor_slots(config).items():
        leaf = functools.reduce(lambda node, part: node[part], slot.path, tree)
        named[name.replace("embed_out", "lm_head")] = slot.layout.to_file(np.asarray(leaf))
    return named


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def compare(pair: Pair, padding: str, *, stacked: bool) -> None:
    ids, mask = batch(padding, seed=PADDINGS.index(padding))
    theirs = torch_forward(pair.theirs, ids, mask)
    params = stack_layers(pair.params) if stacked else pair.params
    decoder = Decoder(pair.config, remat="full" if stacked else "none")
    logits, hidden, loss, inputs, weights = jax_forward(decoder, params, ids, mask)

    assert theirs.logits[mask].std() > 0.5  # the comparison is of something
    difference = np.abs(np.asarray(logits) - theirs.logits)[mask].max()
    assert difference <= 2e-4
    np.testing.assert_allclose(np.asarray(hidden)[mask], theirs.hidden[mask], atol=1e-4, rtol=0)
    assert abs(loss - theirs.loss) < 1e-5 * theirs.loss

    named = by_torch_name(pair.config, unstack_layers(weights))
    assert named.keys() == theirs.weights.keys()
    errors = {n: relative_error(named[n], grad) for n, grad in theirs.weights.items()}
    errors["inputs"] = relative_error(inputs, theirs.inputs)
    print(f"FIGURES {pair.id_} logits {difference:.1e} gradient {max(errors.values()):.1e}")
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("padding", PADDINGS)
def test_logits_and_gradients(pair, padding):
    compare(pair, padding, stacked=False)


@pytest.mark.parametrize("pair", SCANNED, indirect=True)
def test_logits_and_gradients_of_a_scan_over_layers(pair):
    compare(pair, "left", stacked=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def greedy(decoder, options, params, prompts):
    key, one = jax.random.key(0), jnp.float32(1.0)
    return sample(decoder, options, params, None, prompts, key, one, greedy=True).response_ids_BT


def test_greedy_ids(pair):
    """Continuations of left-padded prompts, the shortest of one token, beyond every window."""
    ids, mask = batch("left", seed=5, columns=12)
    theirs = pair.theirs.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask).long(),
        do_sample=False,
        max_new_tokens=T,
        pad_token_id=0,
    )[:, ids.shape[1] :].numpy()
    row = jnp.arange(B)
    prompts = Prompts(jnp.asarray(ids), jnp.asarray(mask), row, 0 * row, {})
    options = RolloutOptions(max_new_tokens=T)
    ours = np.asarray(greedy(Decoder(pair.config), options, pair.params, prompts))
    assert len(np.unique(theirs)) > 5  # the comparison is of something
    np.testing.assert_array_equal(ours, theirs)
