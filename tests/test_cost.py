"""Counted work against the products in the traced network, and against loops over steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import row_states, tiny_model
from family_configs import IDS, model_config
from ppo_jax import attention, cost
from ppo_jax.config import Config, replace
from ppo_jax.cost import Lengths, floor_seconds, phase_work, trunk_flops
from ppo_jax.decoder import Decoder
from ppo_jax.memory_weights import abstract_weights
from ppo_jax.model import init_trunk, unembed

# Windows shorter and longer than the rows, in some of the layers or in all of them.
WINDOWS = {
    "none": {},
    "some": {"window": 3, "local_layers": (True, False, True)},
    "all": {"window": 4},
    "wide": {"window": 99},
}
SETTLED = replace(Config(), **{"model.compute_dtype": "float32"})
LENGTHS = Lengths(np.array([3, 5, 2, 7]), np.array([4, 1, 6, 6]))
SHAPES = {
    "gqa": tiny_model(),
    "mqa": tiny_model(num_kv_heads=1, head_dim=24),
    "mha": tiny_model(num_kv_heads=4, num_layers=5),
    "plain-mlp": tiny_model(gated_mlp=False, mlp_dim=72),
    "fused": tiny_model(fused_qkv=True, num_kv_heads=4, parallel_residual=True),
}


def dots(jaxpr) -> float:
    """FLOPs of every dot_general in a jaxpr, those in calls inside of it included."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            inner = np.prod([equation.invars[0].aval.shape[i] for i in left])
            total += 2.0 * inner * np.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += dots(inside)
    return total


def traced_flops(config, B, S) -> float:
    decoder = Decoder(config, remat="none")
    params = jax.eval_shape(functools.partial(init_trunk, config), jax.random.key(0))
    rows = jax.ShapeDtypeStruct((B, S), jnp.int32)
    return dots(jax.make_jaxpr(functools.partial(row_states, decoder))(params, rows, rows).jaxpr)


@pytest.mark.parametrize("B,S", [(2, 7), (3, 16)])
@pytest.mark.parametrize("name", SHAPES)
def test_trunk_flops_are_the_products_of_the_network(name, B, S):
    assert trunk_flops(SHAPES[name], B * S, B * S**2) == traced_flops(SHAPES[name], B, S)


@pytest.mark.parametrize("id_", IDS[::3])
def test_trunk_flops_of_every_family(id_):
    config = model_config(id_)
    assert trunk_flops(config, 11, 121) == traced_flops(config, 1, 11)


def test_trunk_flops_of_traced_counts_larger_than_an_int32():
    config = tiny_model(embed_dim=4096, mlp_dim=2**18)
    count = jax.jit(lambda tokens, pairs: trunk_flops(config, tokens, pairs))
    np.testing.assert_allclose(count(2**20, 2**24), trunk_flops(config, 2**20, 2**24), rtol=1e-6)


def test_head_flops_are_the_products_of_the_head():
    config = tiny_model()
    params = jax.eval_shape(functools.partial(init_trunk, config), jax.random.key(0))
    hidden = jax.ShapeDtypeStruct((13, config.embed_dim), jnp.float32)
    head = jax.make_jaxpr(functools.partial(unembed, Decoder(config)))(params, hidden)
    assert cost.head_flops(config, 13) == dots(head.jaxpr)


def visible(model, n) -> np.ndarray:
    """Keys that each token of a row of n attends to in the network: [L, n]."""
    mask_1S, positions_1S = jnp.ones((1, n), bool), jnp.arange(n)[None]
    seen = attention.view(model, mask_1S, positions_1S)
    masks = [seen.local_B1SS if local else seen.full_B1SS for local in model.is_local]
    return np.stack([np.asarray(mask_11SS)[0, 0].sum(axis=1) for mask_11SS in masks])


@pytest.mark.parametrize("name", WINDOWS)
def test_pairs_are_those_the_network_attends_to(name):
    model = tiny_model(num_layers=3, **WINDOWS[name])
    every = {n: visible(model, n) for n in range(1, 14)}
    for n, keys_LS in every.items():
        np.testing.assert_allclose(cost.seen_keys(model, np.arange(1, n + 1)), keys_LS.mean(0))
        np.testing.assert_allclose(cost.seen_pairs(model, np.array([n])), keys_LS.sum() / 3)
    expected = sum(keys_LS.sum() for keys_LS in every.values()) / 3
    np.testing.assert_allclose(cost.seen_pairs(model, np.arange(1, 14)), expected)


@pytest.mark.parametrize("name", WINDOWS)
def test_decoding_attends_to_what_one_pass_over_the_sequences_would(name):
    model = tiny_model(num_layers=3, **WINDOWS[name])
    _, keys_T = cost.decode_steps(model, LENGTHS)
    prefilled = cost.seen_pairs(model, LENGTHS.prompt_B)
    whole = sum(visible(model, int(p + r - 1)).sum() / 3 for p, r in zip(*LENGTHS, strict=True))
    np.testing.assert_allclose(prefilled + keys_T.sum(), whole)


def matrix_entries(tree) -> int:
    """Entries of a tree's matrices: adapters' and embeddings' too, but not of a value head."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = ("kernel", "embedding", "lora_a", "lora_b")
    return sum(x.size for path, x in leaves if path[-1].key in names)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("critic", ["shared", "own-shape", "policy's-shape"])
def test_trained_parameters_are_those_of_the_first_state(critic, tied, rank):
    model = tiny_model(tie_embeddings=tied)
    other = tiny_model(tie_embeddings=tied, num_layers=3, embed_dim=16)
    own = {"shared": None, "own-shape": other, "policy's-shape": model}[critic]
    config = replace(SETTLED, **{"model.lora.rank": rank})
    config = replace(config, **{"model.critic": "shared" if own is None else "separate"})
    state, _ = abstract_weights(config, model, own)
    assert cost.trained_params(config, model) == matrix_entries(state.params["policy"])
    if own is not None:
        found = cost.trained_params(config, own, lm_head=False)
        assert found == matrix_entries(state.params["value"]["trunk"])


@pytest.mark.parametrize("tied", [True, False])
def test_the_update_moves_no_lm_head_of_a_critic(tied):
    model, own = tiny_model(tie_embeddings=tied), tiny_model(tie_embeddings=tied, num_layers=3)
    config = replace(SETTLED, **{"model.critic": "separate"})
    state, _ = abstract_weights(config, model, own)
    trunks = {"policy": state.params["policy"], "critic": state.params["value"]["trunk"]}
    # Each pass reads the matrices it multiplies by; a tied table is one of them for logits alone.
    layers = {name: matrix_entries(tree["layers"]) for name, tree in trunks.items()}
    read = sum(layers.values()) + model.vocab_size * model.embed_dim
    moved = 2 * 4 * read + 4 * 2 * 4 * matrix_entries(trunks)
    steps = config.ppo.epochs * config.ppo.minibatches
    assert phase_work(config, model, own, LENGTHS)["update"].bytes == steps * moved


def test_a_learned_table_of_positions_is_trained():
    model = tiny_model(position="learned", max_positions=11)
    state, _ = abstract_weights(SETTLED, model, None)
    assert cost.trained_params(SETTLED, model) == matrix_entries(state.params["policy"])


def rollout_floor(config, model, item, weights, F, BW) -> float:
    """Prefill, then token by token: whoever still needs one takes part in the step."""
    layers = sum(
        np.prod(x.shape)
        for path, x in jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(functools.partial(init_trunk, model), jax.random.key(0))["layers"]
        )
        if path[-1].key == "kernel"
    )
    head, kv = model.vocab_size * model.embed_dim, 2 * model.num_layers * model.num_kv_heads
    kv *= model.head_dim * item
    per_pair = 4 * model.num_layers * model.num_heads * model.head_dim
    kept = model.window or 99
    rows = [(int(p), int(r)) for p, r in zip(*LENGTHS, strict=True)]
    pairs = sum(min(i, kept) for p, _ in rows for i in range(1, p + 1))
    flops = sum(2.0 * (layers * p + head) for p, _ in rows) + per_pair * pairs
    seconds = max(flops / F, (layers * weights + head * item + sum(kv * p for p, _ in rows)) / BW)
    drawn, step = 1, 1
    while any(r > drawn for _, r in rows):
        live = [(p, r) for p, r in rows if r > drawn]
        keys = sum(min(p + step, kept) for p, _ in live)
        flops = 2.0 * (layers + head) * len(live) + per_pair * keys
        moved = layers * weights + head * item + kv * keys
        seconds += max(flops / F, moved / BW)
        drawn, step = drawn + 1, step + 1
    return seconds


@pytest.mark.parametrize("F,BW", [(1e9, 1e12), (1e12, 1e9), (4e9, 1e10)])
@pytest.mark.parametrize(
    "dtype,weights,item,width",
    [("float32", "compute", 4, 4), ("bfloat16", "compute", 2, 2), ("bfloat16", "int8", 2, 1)],
)
@pytest.mark.parametrize("window", [None, 4])
def test_the_floor_of_decoding_is_the_sum_over_its_steps(
    dtype, weights, item, width, F, BW, window
):
    model = tiny_model(tie_embeddings=False, window=window)
    config = replace(Config(), **{"model.compute_dtype": dtype, "rollout.weights": weights})
    found = floor_seconds(phase_work(config, model, None, LENGTHS)["rollout"], F, BW)
    np.testing.assert_allclose(found, rollout_floor(config, model, item, width, F, BW), rtol=1e-12)


def test_responses_of_one_token_need_no_step():
    rows_T, keys_T = cost.decode_steps(tiny_model(), Lengths(np.array([4, 9]), np.array([1, 1])))
    assert rows_T.shape == keys_T.shape == (0,)


def forward(model, with_head=True) -> float:
    read = LENGTHS.prompt_B + LENGTHS.response_B - 1  # nothing is drawn after the last token
    flops = sum(trunk_flops(model, n, int(visible(model, n)[0].sum())) for n in map(int, read))
    return flops + with_head * sum(cost.head_flops(model, int(n)) for n in LENGTHS.response_B)


POLICY, CRITIC = tiny_model(), tiny_model(num_layers=3, embed_dim=16)
PASSES = {  # options, critic -> forwards of (policy, critic trunk) in score and update
    "default": ({}, None, (2, 0), (12, 0)),
    "sampler": ({"rollout.old_logprobs": "sampler"}, None, (1, 0), (12, 0)),
    "sampler-exact": (
        {"rollout.old_logprobs": "sampler", "reward.kl_estimator": "full"},
        None,
        (2, 0),
        (12, 0),
    ),
    "two-epochs": ({"ppo.epochs": 2}, None, (2, 0), (6, 0)),
    "separate": ({}, CRITIC, (2, 1), (12, 12)),
    "value-epochs": ({"ppo.epochs": 1, "ppo.value_epochs": 3}, CRITIC, (2, 1), (3, 9)),
    "no-critic": ({"ppo.advantage": "rloo"}, CRITIC, (2, 0), (12, 0)),
}


@pytest.mark.parametrize("case", PASSES)
def test_passes_are_counted_by_what_is_configured(case):
    options, critic, scored, updated = PASSES[case]
    work = phase_work(replace(Config(), **options), POLICY, critic, LENGTHS)
    each = forward(POLICY), forward(CRITIC, with_head=False)
    for phase, passes in {"score": scored, "update": updated}.items():
        np.testing.assert_allclose(work[phase].flops, np.dot(passes, each), rtol=1e-12)


def test_extra_critic_epochs_on_a_shared_trunk_spare_the_head():
    config = replace(Config(), **{"ppo.epochs": 1, "ppo.value_epochs": 2})
    expected = 3 * forward(POLICY) + 3 * forward(POLICY, with_head=False)
    flops = phase_work(config, POLICY, None, LENGTHS)["update"].flops
    np.testing.assert_allclose(flops, expected, rtol=1e-12)


def test_frozen_weights_get_no_gradient():
    config = replace(Config(), **{"model.lora.rank": 2, "ppo.epochs": 1})
    read = LENGTHS.prompt_B + LENGTHS.response_B - 1
    attended = trunk_flops(POLICY, 0, sum(int(visible(POLICY, n)[0].sum()) for n in map(int, read)))
    expected = 2 * (forward(POLICY) - attended) + 3 * attended
    assert phase_work(config, POLICY, None, LENGTHS)["update"].flops == expected


@pytest.mark.parametrize("minibatches", [1, 4])
def test_the_optimiser_moves_its_arrays_every_step(minibatches):
    config = replace(
        Config(),
        **{"ppo.epochs": 3, "ppo.minibatches": minibatches, "model.compute_dtype": "float32"},
    )
    params = cost.layer_params(POLICY) + cost.head_params(POLICY)
    expected = 3 * minibatches * (2 * 4 * params + 4 * 2 * 4 * params)
    assert phase_work(config, POLICY, None, LENGTHS)["update"].bytes == expected


def test_totals_are_the_sums_of_the_stages():
    for work in phase_work(Config(), POLICY, CRITIC, LENGTHS).values():
        np.testing.assert_allclose(work[:2], work.stages_N2.sum(axis=0))
        whole = floor_seconds(work._replace(stages_N2=None), 1e9, 1e9)
        assert floor_seconds(work, 1e9, 1e9) >= whole * (1 - 1e-12)


def test_a_floor_without_stages_is_the_slower_of_the_two():
    assert floor_seconds(cost.Work(10.0, 30.0), 5.0, 10.0) == 3.0
    assert floor_seconds(cost.Work(40.0, 30.0), 5.0, 10.0) == 8.0


def test_longer_sequences_are_more_work():
    config, longer = Config(), Lengths(LENGTHS.prompt_B, LENGTHS.response_B + 1)
    less, more = (phase_work(config, POLICY, None, lengths) for lengths in (LENGTHS, longer))
    assert all(more[phase].flops > less[phase].flops for phase in less)
    deeper = dataclasses.replace(POLICY, num_layers=4)
    more = phase_work(config, deeper, None, LENGTHS)
    assert all(more[phase].flops > less[phase].flops for phase in less)
