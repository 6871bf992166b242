"""A linear-softmax policy with a linear critic: `ppo_update` without a language model, and the same
loss as loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from loss_oracle import slow_aggregate, slow_policy_loss, slow_value_loss
from ppo_jax.config import Config, HParams, replace
from ppo_jax.update import Evaluation, Optimisers, Rows, ppo_update

B, T, F, D, V = 8, 6, 3, 4, 7
BASE = replace(Config(hparams=HParams(learning_rate=0.05)), **{"ppo.epochs": 1})


def accumulate() -> optax.GradientTransformation:
    """Sums the gradients in its state and moves nothing."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    add = lambda grads, state, params: (zeros(grads), jax.tree.map(jnp.add, state, grads))
    return optax.GradientTransformation(zeros, add)


QUICK = {"xla_backend_optimization_level": 0}  # compiling is what takes the time here
TRANSFORMS = {"adam": optax.scale_by_adam(), "sgd": optax.identity(), "sum": accumulate()}


def evaluate(params, rows: Rows, losses=()) -> Evaluation:
    """The critic shares the policy's hidden state where its weights fit that, else reads x."""
    x_BTF, ids_BT, ref_BTV = rows.data
    hidden_BTD = x_BTF @ params["policy"]["u"]
    logp_BTV = jax.nn.log_softmax(hidden_BTD @ params["policy"]["w"])
    w = params["value"]["w"]
    kl_BT = (jnp.exp(logp_BTV) * (logp_BTV - ref_BTV)).sum(-1)
    return Evaluation(
        jnp.take_along_axis(logp_BTV, ids_BT[..., None], axis=-1)[..., 0],
        -(jnp.exp(logp_BTV) * logp_BTV).sum(-1),
        (hidden_BTD if w.shape == (D,) else x_BTF) @ w,
        kl_BT,
    )


def make_params(critic: str, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = {"u": (F, D), "w": (D, V)}
    policy = {name: 0.7 * rng.normal(size=shape) for name, shape in shapes.items()}
    value = {"w": rng.normal(size=D if critic == "shared" else F)}
    return as_float32({"policy": policy, "value": value})


def make_rows(params, seed: int = 1, *, spread: float = 0.3) -> Rows:
    """Rows of several lengths; the policy that sampled is `spread` away, 0: the present one."""
    rng = np.random.default_rng(seed)
    data = (
        rng.normal(size=(B, T, F)),
        rng.integers(V, size=(B, T)).astype(np.int32),
        np.log(rng.dirichlet(np.ones(V), size=(B, T))),
    )
    mask_BT = (np.arange(T) < rng.integers(1, T + 1, size=B)[:, None]).astype(np.float32)
    noise = lambda scale: scale * rng.normal(size=(B, T))
    blank = Rows(as_float32(data), mask_BT, *(np.zeros((B, T), np.float32),) * 4)
    now = jax.jit(evaluate)(params, blank)
    return blank._replace(
        old_logprobs_BT=np.asarray(now.logprobs_BT) + noise(spread),
        old_values_BT=np.asarray(now.values_BT) + noise(spread),
        advantages_BT=noise(1.0),
        returns_BT=np.asarray(now.values_BT) + noise(1.0),
        ref_logprobs_BT=np.asarray(now.logprobs_BT) + noise(0.5),
    )


def as_float32(tree):
    narrow = lambda x: x.astype(np.float32) if x.dtype == np.float64 else x
    return jax.tree.map(lambda x: jnp.asarray(narrow(np.asarray(x))), tree)


@functools.cache
def program(config: Config, kind: str):
    """Jitted `(params, opt_state, rows, hparams, kl_coef, freeze, key, exact)`."""
    transform = TRANSFORMS[kind]

    @functools.partial(jax.jit, static_argnames="exact", compiler_options=QUICK)
    def update(params, opt_state, rows, hparams, kl_coef, freeze, key, exact):
        critic_rate = hparams.critic_learning_rate
        rate = hparams.learning_rate
        critic_rate = rate if critic_rate is None else critic_rate
        rates = Optimisers((transform, rate), (transform, critic_rate))

        def hook(params, rows, losses):
            out = evaluate(params, rows)
            return out if exact else out._replace(kl_BT=None)

        return ppo_update(
            config,
            hparams,
            rates,
            hook,
            params,
            opt_state,
            rows,
            key,
            kl_coef=kl_coef,
            freeze_policy=freeze,
        )

    return update


def update(config, params, rows, kind="adam", *, opt_state=None, kl_coef=0.0, freeze=False, seed=0):
    """(params, opt_state, metrics) of one `ppo_update`, as NumPy."""
    if opt_state is None:
        opt_state = {group: TRANSFORMS[kind].init(params[group]) for group in params}
    result = program(static(config), kind)(
        params,
        opt_state,
        as_float32(rows),
        jax.tree.map(jnp.float32, config.hparams),
        jnp.float32(kl_coef),
        jnp.asarray(freeze),
        jax.random.key(seed),
        exact=config.reward.kl_estimator == "full",
    )
    return jax.tree.map(np.asarray, result)


def static(config: Config) -> Config:
    """The config without its traced numbers: what a program is compiled for."""
    return replace(config, hparams=jax.tree.map(lambda _: 0.0, config.hparams))


def slow_loss(config: Config, params, rows: Rows, kl_coef: float) -> float:
    """The whole loss of the rows in float64."""
    x_BTF, ids_BT, ref_BTV = (np.asarray(a, np.float64) for a in rows.data)
    mask, old, old_values, advantages, returns, ref = (np.asarray(a, np.float64) for a in rows[1:])
    h, ids = config.hparams, ids_BT.astype(int)
    hidden = x_BTF @ params["policy"]["u"]
    logits = hidden @ params["policy"]["w"]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logp, ids[..., None], axis=-1)[..., 0]
    entropy = -(np.exp(logp) * logp).sum(-1)
    w = params["value"]["w"]
    values = (hidden if w.shape == (D,) else x_BTF) @ w
    aggregate = config.ppo.aggregate
    loss = slow_policy_loss(
        chosen, old, advantages, mask, h.clip_low, h.clip_high, h.dual_clip, None, aggregate
    )
    loss += h.vf_coef * slow_value_loss(values, old_values, returns, mask, h.value_clip)
    if h.entropy_coef is not None:
        loss -= h.entropy_coef * slow_aggregate(entropy, mask, aggregate)
    if config.reward.kl_in == "loss":
        gap = chosen - ref
        kl = {
            "k1": gap,
            "k2": gap**2 / 2,
            "k3": np.exp(-gap) - 1 + gap,
            "full": (np.exp(logp) * (logp - ref_BTV)).sum(-1),
        }[config.reward.kl_estimator]
        loss += kl_coef * slow_aggregate(kl, mask, aggregate)
    return loss
