"""Environments: what answers a policy turn by turn, so that a response becomes a dialogue.

On the device, part of the compiled step, pure JAX: a `base.DeviceEnv`, as `maze.maze` and
`guess.guess` make them. In ordinary Python, around a compiled program: a `host.HostEnv`. An
experiment names one as its ENVIRONMENT, and what it pays with the reward
`rewards.environment.environment_reward()`; rewards in Python are given the whole dialogue.
"""
