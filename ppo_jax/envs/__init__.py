"""Environments: what answers a policy turn by turn, so that a response becomes a dialogue.

On the device, part of the compiled step, pure JAX: a `base.DeviceEnv`, made by `maze.maze` or
`guess.guess`. An experiment names it as its ENVIRONMENT, and what it pays with the reward
`rewards.environment.environment_reward()`.
"""
