"""The library of rewards.

A reward is one of two functions. On the device, part of the compiled step, pure JAX:

    fn(rollout, columns) -> scores_B or rewards_BT

On the host, plain Python, strings in (the compiled step is cut around it):

    fn(prompts, responses, **columns) -> list[float] or dict[str, list[float]]

`base` sorts out which one was given and checks what host functions return; `lexicon` is the
word-list reward, sentiment among them.
"""
