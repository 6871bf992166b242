"""What a policy is worth in Gymnasium's own environment: its dynamics, and the network once more in
NumPy's float64, so that neither ours nor JAX has a part in it."""

import jax
import numpy as np
from _task import Task

from ppo_jax.errors import ConfigError

IDS = {"lander": "LunarLander-v3"}  # of tasks that go by another name there


def gymnasium_returns(task: Task, params: dict, episodes: int) -> np.ndarray:
    """By seed, the mean return of so many episodes with the likeliest actions. `params` has a
    leading axis of seeds."""
    environment = _made(IDS.get(task.name, task.name))
    by_seed = []
    for seed in range(params["policy"]["head"]["b"].shape[0]):
        policy = jax.tree.map(lambda x, seed=seed: np.asarray(x[seed], np.float64), params)
        returns = [_return(task, environment, policy["policy"], i) for i in range(episodes)]
        by_seed.append(np.mean(returns))
    environment.close()
    return np.asarray(by_seed)


def _made(name: str):
    try:
        import gymnasium
    except ImportError:
        raise ConfigError("gymnasium: not installed; pip install gymnasium") from None
    try:
        return gymnasium.make(name)
    except gymnasium.error.DependencyNotInstalled as error:
        hint = 'pip install "gymnasium[box2d]"' if "Lander" in name else str(error)
        raise ConfigError(f"gymnasium: {name} needs more: {hint}") from None


def _return(task: Task, environment, policy: dict, seed: int) -> float:
    seen_F, _ = environment.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        out_A = policy_output(policy, seen_F)
        action = out_A.astype(np.float32) if task.continuous else int(np.argmax(out_A))
        seen_F, reward, terminated, truncated, _ = environment.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def policy_output(policy: dict, seen_F: np.ndarray) -> np.ndarray:
    """Logits or means, by NumPy."""
    x = np.asarray(seen_F, np.float64)
    for layer in policy["trunk"]:
        x = np.tanh(x @ layer["w"] + layer["b"])
    return x @ policy["head"]["w"] + policy["head"]["b"]
