"""Policies and critics: two hidden layers with tanh, orthogonal weights.

Functions of one observation; `jax.vmap` makes many of them. A continuous policy is Gaussian, its
deviation a parameter of its own that does not depend on what is seen.
"""

import math

import jax
import jax.numpy as jnp
from _task import Array, Task


def init_params(task: Task, hidden: tuple[int, ...], critic: str, key: Array) -> dict:
    """{"policy": ..., "value": ...}; with a shared critic the value is a head on the policy's
    hidden layers. Gains as in OpenAI's baselines: sqrt(2), 0.01 for actions, 1 for values."""
    keys = jax.random.split(key, 2 * (len(hidden) + 1)).reshape(2, -1)
    trunks = [_trunk(keys[i, :-1], (task.features, *hidden)) for i in range(2)]
    wide = hidden[-1] if hidden else task.features
    policy = {"trunk": trunks[0], "head": _layer(keys[0, -1], wide, task.actions, 0.01)}
    if task.continuous:
        policy["log_std"] = jnp.zeros(task.actions)
    value = {"head": _layer(keys[1, -1], wide, 1, 1.0)}
    if critic == "separate":
        value["trunk"] = trunks[1]
    return {"policy": policy, "value": value}


def _trunk(keys: Array, widths: tuple[int, ...]) -> list[dict]:
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return [_layer(keys[i], n, m, math.sqrt(2)) for i, (n, m) in enumerate(pairs)]


def _layer(key: Array, inputs: int, outputs: int, gain: float) -> dict:
    weights = jax.nn.initializers.orthogonal(gain)(key, (inputs, outputs))
    return {"w": weights, "b": jnp.zeros(outputs)}


def _linear(layer: dict, x: Array) -> Array:
    return x @ layer["w"] + layer["b"]


def _hidden(trunk: list[dict], x: Array) -> Array:
    for layer in trunk:
        x = jnp.tanh(_linear(layer, x))
    return x


def policy_output(policy: dict, seen_F: Array) -> Array:
    """Logits of the actions, or the mean of a continuous one: [A]."""
    return _linear(policy["head"], _hidden(policy["trunk"], seen_F))


def value_of(params: dict, seen_F: Array) -> Array:
    """V of what is seen."""
    value = params["value"]
    trunk = value["trunk"] if "trunk" in value else params["policy"]["trunk"]
    return _linear(value["head"], _hidden(trunk, seen_F))[0]


def draw(task: Task, policy: dict, seen_F: Array, key: Array) -> tuple[Array, Array]:
    """An action of the policy, and its log-probability (density, where continuous), nats."""
    out_A = policy_output(policy, seen_F)
    if task.continuous:
        action = out_A + jnp.exp(policy["log_std"]) * jax.random.normal(key, out_A.shape)
    else:
        action = jax.random.categorical(key, out_A)
    return action, _logprob(policy, out_A, action)


def likeliest(task: Task, policy: dict, seen_F: Array) -> Array:
    out_A = policy_output(policy, seen_F)
    return out_A if task.continuous else jnp.argmax(out_A)


def logprob_and_entropy(policy: dict, seen_F: Array, action: Array) -> tuple[Array, Array]:
    """Log-probability of the action, and the distribution's entropy, nats."""
    out_A = policy_output(policy, seen_F)
    if "log_std" in policy:
        entropy = jnp.sum(policy["log_std"] + 0.5 * math.log(2 * math.pi * math.e))
    else:
        logp_A = jax.nn.log_softmax(out_A)
        entropy = -jnp.sum(jnp.exp(logp_A) * logp_A)
    return _logprob(policy, out_A, action), entropy


def _logprob(policy: dict, out_A: Array, action: Array) -> Array:
    if "log_std" not in policy:
        return jax.nn.log_softmax(out_A)[action]
    off_A = (action - out_A) * jnp.exp(-policy["log_std"])
    return jnp.sum(-0.5 * off_A**2 - policy["log_std"] - 0.5 * math.log(2 * math.pi))
