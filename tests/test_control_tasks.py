"""Control tasks: steps of ours beside Gymnasium's own, and the lander beside mechanics."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from control_parts import classic, lander, task

STATES = 400
# Bounds of the states that are tried: past every threshold, clip and wrap.
CASES = {
    "CartPole-v1": (classic.CARTPOLE, [2.6, 3.0, 0.25, 4.0]),
    "Acrobot-v1": (classic.ACROBOT, [np.pi, np.pi, 12.5, 28.0]),
    "Pendulum-v1": (classic.PENDULUM, [9.0, 8.0]),
}


def gymnasium_steps(name, bounds):
    """(state, action, observation, reward, terminated) of steps from states anywhere."""
    environment = gymnasium.make(name).unwrapped
    rng = np.random.default_rng(0)
    continuous = isinstance(environment.action_space, gymnasium.spaces.Box)
    for _ in range(STATES):
        environment.reset(seed=0)
        state = rng.uniform(-1, 1, len(bounds)) * bounds
        action = rng.uniform(-3, 3, 1) if continuous else rng.integers(environment.action_space.n)
        environment.state = state.copy()
        seen, reward, terminated, _, _ = environment.step(action)
        yield state, action, seen, reward, terminated


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_gymnasiums(name):
    ours, bounds = CASES[name]
    state, action, seen, reward, terminated = map(
        np.asarray, zip(*gymnasium_steps(name, bounds), strict=True)
    )
    step = jax.jit(
        jax.vmap(lambda s, a: (lambda out: (ours.observe(out[0]), *out[1:]))(ours.step(s, a)))
    )
    ours_seen, ours_reward, ours_over = step(jnp.asarray(state, jnp.float32), jnp.asarray(action))
    np.testing.assert_allclose(ours_seen, seen, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(ours_reward, reward, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(ours_over, terminated)
    if name != "Pendulum-v1":
        assert 20 < terminated.sum() < STATES - 20


@pytest.mark.parametrize("name", CASES)
def test_episodes_start_where_gymnasiums_do_and_are_as_long(name):
    ours, _ = CASES[name]
    environment = gymnasium.make(name)
    theirs = np.stack([environment.reset(seed=seed)[0] for seed in range(300)])
    keys = jax.random.split(jax.random.key(0), 300)
    seen = np.asarray(jax.vmap(lambda key: ours.observe(ours.start(key)))(keys))
    assert seen.shape == theirs.shape == (300, ours.features)
    for quantile in (0.0, 0.25, 0.75, 1.0):
        spread = theirs.max(0) - theirs.min(0)
        gap = np.abs(np.quantile(seen, quantile, axis=0) - np.quantile(theirs, quantile, axis=0))
        assert np.all(gap < 0.15 * spread + 1e-6)
    assert ours.limit == environment.spec.max_episode_steps
    space = environment.action_space
    assert ours.actions == (space.shape[0] if ours.continuous else space.n)


def counting(ends_at: int, limit: int):
    """Counts its steps, pays the count, and ends at one of them."""
    step = lambda state, action: (state + 1, state + 1.0, state + 1 >= ends_at)
    return task.Task(
        "counting", 1, 1, False, limit, lambda key: jnp.float32(0), lambda s: s[None], step
    )


@pytest.mark.parametrize("ends_at, limit, length", [(3, 5, 3), (9, 4, 4), (4, 4, 4)])
def test_an_episode_ends_or_is_cut_off_and_the_next_begins(ends_at, limit, length):
    toy = counting(ends_at, limit)
    episode, key = task.begin(toy, jax.random.key(0)), jax.random.key(1)
    seen = []
    for _ in range(2 * length):
        episode, outcome = task.advance(toy, episode, jnp.int32(0), key)
        seen.append([float(x) for x in (outcome.next_seen_F[0], outcome.total)])
        over = len(seen) % length == 0
        assert bool(outcome.terminated) == (over and length == ends_at)
        assert bool(outcome.truncated) == (over and length != ends_at)
        assert int(episode.steps) == len(seen) % length == int(episode.state)
    totals = np.cumsum(np.arange(1, length + 1)).tolist()
    assert seen == [[float(n + 1), float(x)] for n, x in enumerate(totals)] * 2


def resting(height: float, angle: float = 0.0, speed=(0.0, 0.0)):
    place_2 = jnp.array([0.0, height])
    zero, no = jnp.float32(0), jnp.zeros(2, bool)
    return lander.Lander(place_2, jnp.array(speed), jnp.float32(angle), zero, no, jnp.int32(0))


def flown(state, actions):
    step = jax.jit(lander.LANDER.step)
    total, over = 0.0, False
    for action in actions:
        state, reward, over = step(state, jnp.int32(action))
        total += float(reward)
        if over:
            break
    return state, total, bool(over)


def test_the_lander_falls_as_bodies_fall():
    state, _, _ = flown(resting(9.0, angle=0.3, speed=(1.5, 2.0)), [0] * 25)
    assert float(state.speed_2[1]) == pytest.approx(2.0 - 10 * 0.5, abs=1e-4)
    assert float(state.place_2[0]) == pytest.approx(1.5 * 0.5, abs=1e-4)
    # Symplectic Euler falls g t dt / 2 further than the parabola.
    expected = 9.0 + 2.0 * 0.5 - 10 * 0.5 * (0.5 + 0.005) / 2
    assert float(state.place_2[1]) == pytest.approx(expected, abs=1e-4)
    assert float(state.spin) == 0 and float(state.angle) == pytest.approx(0.3)


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.0])
def test_engines_push_along_and_across_the_hull(angle):
    along, across = (
        np.array([-np.sin(angle), np.cos(angle)]),
        np.array([np.cos(angle), np.sin(angle)]),
    )
    pushes = {1: -lander.SIDE * across, 2: lander.MAIN * along, 3: lander.SIDE * across}
    for action, impulse in pushes.items():
        state, _, _ = flown(resting(9.0, angle), [action])
        gained = np.asarray(state.speed_2) + [0, 10 * 0.02]
        np.testing.assert_allclose(gained, impulse / lander.MASS, atol=1e-5)
        turn = {1: 1, 2: 0, 3: -1}[action] * lander.SIDE * lander.SIDE_ARM / lander.INERTIA
        assert float(state.spin) == pytest.approx(turn, abs=1e-6)


def test_it_lands_and_its_weight_lies_on_both_legs():
    state, total, over = flown(resting(0.75), [0] * 400)
    assert over and total > 100
    sunk = 0.6 + lander.CENTRE - float(state.place_2[1])
    assert sunk == pytest.approx(lander.MASS * 10 / (2 * lander.STIFF), abs=2e-3)
    assert lander.LANDER.observe(state)[6:].tolist() == [1, 1]


@pytest.mark.parametrize(
    "start", [{"height": 3.0, "angle": 3.0}, {"height": 6.0, "speed": (60.0, 0.0)}]
)
def test_it_is_lost_by_its_hull_or_out_of_sight(start):
    _, total, over = flown(resting(**start), [0] * 200)
    assert over and total < -100


def test_rewards_are_the_growth_of_the_potential_less_fuel():
    actions = np.random.default_rng(0).integers(4, size=40)
    start = resting(9.0, speed=(0.5, -1.0))
    state, total, over = flown(start, actions)
    fuel = 0.3 * (actions == 2).sum() + 0.03 * ((actions == 1) | (actions == 3)).sum()

    def potential(lander_state):  # by hand, from the units of Gymnasium's observation
        x, y, vx, vy, angle, _, left, right = np.asarray(lander.LANDER.observe(lander_state), float)
        gaps = np.hypot(x, y) + np.hypot(vx, vy) + abs(angle)
        return -100 * gaps + 10 * left + 10 * right

    assert not over
    assert total == pytest.approx(potential(state) - potential(start) - fuel, abs=2e-3)
    seen = np.asarray(lander.LANDER.observe(start))
    expected = [
        0,
        (9.0 - lander.CENTRE - 0.6) / (400 / 60),
        0.5 * 10 / 50,
        -400 / 60 / 50,
        0,
        0,
        0,
        0,
    ]
    np.testing.assert_allclose(seen, expected, atol=1e-6)
