"""A lander with the observations, actions and rewards of LunarLander-v3, and simpler mechanics.

Masses, engines, sizes and the first push are those of Gymnasium's; the ground is flat, the engines
do not scatter, and hull and legs are one rigid body that stands on two springs with dampers and
friction, where Box2D has joints and contacts of its own. Gymnasium's own heuristic pilot, started
alike, earns 300.8, 260.5 and 253.3 here and 297.4, 260.9 and 254.6 there (seeds 0, 1, 2). But these
legs bear a landing at 5 m/s and Box2D's none above about 2: what is learnt here lands too hard
there, so returns are not to be set beside LunarLander's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from _task import Array, Task

DT, SUBSTEPS = 0.02, 4  # seconds a step, and the parts it is worked out in
GRAVITY, MASS, INERTIA = 10.0, 4.959, 0.905  # m/s², kg, kg m² about the centre of mass
MAIN, SIDE = 13.0 * 4 / 30, 0.6 * 12 / 30  # impulses of a step, N s
SIDE_ARM = 0.365  # m from the centre of mass up to the line of the side engines
CENTRE = 0.1013  # m from the body's origin, which is what is seen, up to its centre of mass
FEET_2X = ((-0.93, -0.6), (0.93, -0.6))  # m from the origin
HULL = ((-14, 17), (-17, 0), (-17, -10), (17, -10), (17, 0), (14, 17))  # thirtieths of a metre
STIFF, DAMP, FRICTION = 400.0, 40.0, 0.3  # of a leg: N/m, N s/m (down and along), N/N
WIDE, HIGH = 10.0, 20 / 3  # m that are 1 in an observation
STILL, STILL_STEPS = 0.05, 25  # m/s and rad/s below which it rests, and for how many steps
PUSH = 1000.0 * DT / 4.817  # m/s, at most, of the first push


class Lander(NamedTuple):
    place_2: Array  # m, of the centre of mass, from the middle of the pad
    speed_2: Array  # m/s
    angle: Array  # rad, to the left
    spin: Array  # rad/s
    touch_2: Array  # bool, which feet stood on the ground in the last step
    still: Array  # int32, steps that it has rested


def _start(key: Array) -> Lander:
    """10 m above the pad, pushed at random."""
    speed_2 = jax.random.uniform(key, (2,), minval=-PUSH, maxval=PUSH)
    zero = jnp.float32(0)
    place_2 = jnp.array([0.0, 1.5 * HIGH + CENTRE])
    return Lander(place_2, speed_2, zero, zero, jnp.zeros(2, bool), jnp.int32(0))


def _observe(lander: Lander) -> Array:
    """Place, speed, angle, spin and whether each foot touches the ground, scaled as in Gymnasium's:
    the height is 0 where the legs, unloaded, just reach the ground."""
    up_2 = jnp.stack([-jnp.sin(lander.angle), jnp.cos(lander.angle)])
    origin_2 = lander.place_2 - CENTRE * up_2
    place_2 = (origin_2 - jnp.array([0.0, 0.6])) / jnp.array([WIDE, HIGH])
    speed_2 = lander.speed_2 * jnp.array([WIDE, HIGH]) / 50
    turn_2 = jnp.stack([lander.angle, 20 * lander.spin / 50])
    return jnp.concatenate([place_2, speed_2, turn_2, lander.touch_2.astype(jnp.float32)])


def _step(lander: Lander, action: Array):
    """Actions: nothing, the engine that pushes left, the main one, the one that pushes right."""
    before = potential(_observe(lander))
    after = _fired(lander, action)
    for _ in range(SUBSTEPS):
        after = _moved(after, DT / SUBSTEPS)
    rests = after.touch_2.all() & (jnp.abs(after.spin) < STILL) & (_length(after.speed_2) < STILL)
    after = after._replace(still=jnp.where(rests, lander.still + 1, 0))
    seen_F = _observe(after)
    fuel = jnp.where(action == 2, 0.3, jnp.where(action == 0, 0.0, 0.03))
    reward = potential(seen_F) - before - fuel
    lost = (_from_body(after, _hull())[:, 1] < 0).any() | (jnp.abs(seen_F[0]) >= 1)
    landed = ~lost & (after.still >= STILL_STEPS)
    reward = jnp.where(lost, -100.0, jnp.where(landed, 100.0, reward))
    return after, reward, lost | landed


def potential(seen_F: Array) -> Array:
    """What a step's reward is the growth of, fuel apart."""
    gap = _length(seen_F[:2]) + _length(seen_F[2:4]) + jnp.abs(seen_F[4])
    return 10 * (seen_F[6] + seen_F[7]) - 100 * gap


def _fired(lander: Lander, action: Array) -> Lander:
    sin, cos = jnp.sin(lander.angle), jnp.cos(lander.angle)
    main = jnp.where(action == 2, MAIN, 0.0)
    side = jnp.where(action == 3, SIDE, jnp.where(action == 1, -SIDE, 0.0))
    impulse_2 = jnp.stack([side * cos - main * sin, side * sin + main * cos])
    speed_2 = lander.speed_2 + impulse_2 / MASS
    return lander._replace(speed_2=speed_2, spin=lander.spin - SIDE_ARM * side / INERTIA)


def _moved(lander: Lander, dt: float) -> Lander:
    """Symplectic Euler: forces of the ground on the feet, then speeds, then places."""
    foot_2X = _from_body(lander, jnp.array(FEET_2X))
    arm_2X = foot_2X - lander.place_2[None]
    slide_2 = lander.speed_2[0] - lander.spin * arm_2X[:, 1]
    sink_2 = lander.speed_2[1] + lander.spin * arm_2X[:, 0]
    touch_2 = foot_2X[:, 1] < 0
    push_2 = jnp.where(touch_2, jnp.maximum(-STIFF * foot_2X[:, 1] - DAMP * sink_2, 0.0), 0.0)
    grip_2 = jnp.clip(-DAMP * slide_2, -FRICTION * push_2, FRICTION * push_2)
    force_2 = jnp.stack([grip_2.sum(), push_2.sum() - MASS * GRAVITY])
    torque = jnp.sum(arm_2X[:, 0] * push_2 - arm_2X[:, 1] * grip_2)
    speed_2 = lander.speed_2 + dt * force_2 / MASS
    spin = lander.spin + dt * torque / INERTIA
    place_2, angle = lander.place_2 + dt * speed_2, lander.angle + dt * spin
    return Lander(place_2, speed_2, angle, spin, touch_2, lander.still)


def _hull() -> Array:
    return jnp.array(HULL) / 30


def _from_body(lander: Lander, points_NX: Array) -> Array:
    """Points given from the body's origin, as places of the world, m."""
    sin, cos = jnp.sin(lander.angle), jnp.cos(lander.angle)
    x_N, y_N = points_NX[:, 0], points_NX[:, 1] - CENTRE
    turned_NX = jnp.stack([x_N * cos - y_N * sin, x_N * sin + y_N * cos], axis=1)
    return turned_NX + lander.place_2[None]


def _length(x_2: Array) -> Array:
    return jnp.sqrt(jnp.sum(x_2**2))


LANDER = Task("lander", 8, 4, False, 1000, _start, _observe, _step)
