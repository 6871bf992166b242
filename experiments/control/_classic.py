"""CartPole-v1, Acrobot-v1 and Pendulum-v1 with the dynamics, rewards and limits of Gymnasium's, in
float32 and pure JAX. The tests step both from the same states."""

import math

import jax
import jax.numpy as jnp
from _task import Array, Task

GRAVITY = 9.8


def _cartpole_step(state_4: Array, action: Array):
    """Barto, Sutton and Anderson 1983; Euler's rule, 0.02 s a step."""
    cart, pole, half_length, dt = 1.0, 0.1, 0.5, 0.02
    x, speed, angle, spin = state_4
    force = jnp.where(action == 1, 10.0, -10.0)
    sin, cos, mass = jnp.sin(angle), jnp.cos(angle), cart + pole
    pushed = (force + pole * half_length * spin**2 * sin) / mass
    turn = (GRAVITY * sin - cos * pushed) / (half_length * (4 / 3 - pole * cos**2 / mass))
    push = pushed - pole * half_length * turn * cos / mass
    next_4 = state_4 + dt * jnp.stack([speed, push, spin, turn])
    fell = (jnp.abs(next_4[0]) > 2.4) | (jnp.abs(next_4[2]) > math.radians(12))
    return next_4, jnp.float32(1), fell


def _acrobot_slope(state_4: Array, torque: Array) -> Array:
    """Time derivative of both angles and both speeds, by Sutton and Barto's book; every link is
    1 m long and weighs 1 kg, its centre in the middle, its moment of inertia 1 kg m²."""
    first, second, spin, other = state_4
    lean = jnp.cos(first + second - math.pi / 2)
    inertia = 0.25 + (1.25 + jnp.cos(second)) + 2.0
    coupling = 0.25 + 0.5 * jnp.cos(second) + 1.0
    pull = 0.5 * GRAVITY * lean
    load = (
        -0.5 * other**2 * jnp.sin(second)
        - other * spin * jnp.sin(second)
        + 1.5 * GRAVITY * jnp.cos(first - math.pi / 2)
        + pull
    )
    turn = torque + coupling / inertia * load - 0.5 * spin**2 * jnp.sin(second) - pull
    turn = turn / (1.25 - coupling**2 / inertia)
    return jnp.stack([spin, other, -(coupling * turn + load) / inertia, turn])


def _acrobot_step(state_4: Array, action: Array):
    """One Runge-Kutta step of fourth order over 0.2 s."""
    torque, dt = action.astype(jnp.float32) - 1.0, 0.2
    slope = lambda state_4: _acrobot_slope(state_4, torque)
    k1 = slope(state_4)
    k2 = slope(state_4 + dt / 2 * k1)
    k3 = slope(state_4 + dt / 2 * k2)
    k4 = slope(state_4 + dt * k3)
    moved_4 = state_4 + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    fastest_2 = jnp.array([4 * math.pi, 9 * math.pi])
    next_4 = jnp.concatenate([_wrapped(moved_4[:2]), jnp.clip(moved_4[2:], -fastest_2, fastest_2)])
    up = -jnp.cos(next_4[0]) - jnp.cos(next_4[0] + next_4[1]) > 1.0
    return next_4, jnp.where(up, 0.0, -1.0), up


def _acrobot_sight(state_4: Array) -> Array:
    first, second, spin, other = state_4
    angles = jnp.cos(first), jnp.sin(first), jnp.cos(second), jnp.sin(second)
    return jnp.stack([*angles, spin, other])


def _pendulum_step(state_2: Array, action_1: Array):
    """A rod of 1 m and 1 kg; the torque is cut at 2 Nm, the speed at 8 rad/s, 0.05 s a step."""
    angle, spin = state_2
    torque, dt = jnp.clip(action_1[0], -2.0, 2.0), 0.05
    cost = _wrapped(angle) ** 2 + 0.1 * spin**2 + 0.001 * torque**2
    spin = jnp.clip(spin + (15.0 * jnp.sin(angle) + 3.0 * torque) * dt, -8.0, 8.0)
    return jnp.stack([angle + spin * dt, spin]), -cost, jnp.zeros((), bool)


def _pendulum_sight(state_2: Array) -> Array:
    return jnp.stack([jnp.cos(state_2[0]), jnp.sin(state_2[0]), state_2[1]])


def _wrapped(angle: Array) -> Array:
    """In [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _uniform(*bounds: float):
    high = jnp.array(bounds)
    return lambda key: jax.random.uniform(key, high.shape, minval=-high, maxval=high)


CARTPOLE = Task(
    "CartPole-v1", 4, 2, False, 500, _uniform(*[0.05] * 4), lambda state_4: state_4, _cartpole_step
)
ACROBOT = Task("Acrobot-v1", 6, 3, False, 500, _uniform(*[0.1] * 4), _acrobot_sight, _acrobot_step)
PENDULUM = Task(
    "Pendulum-v1", 3, 1, True, 200, _uniform(math.pi, 1.0), _pendulum_sight, _pendulum_step
)
