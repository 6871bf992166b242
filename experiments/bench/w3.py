"""W3: W1's layers with responses of very unequal length.

    ppo-jax bench w3

Vocabulary of 24 ids, one of them EOS: small random weights draw it every 24th time, so the lengths
are geometric with mean 24, cut at 256. 64 prompts of 16 tokens; a constant reward and a small
learning rate keep the lengths from drifting. Bars, in own CPU seconds of a whole iteration at
identical arithmetic: at least 2 times TRL's speed and 4 times Tunix's; padding at most 20 % of the
update's matmul FLOPs; decode slots at least 85 % in use. Expected: about 5 s an iteration on two
cores.
"""

from pathlib import Path

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment
from ppo_jax.workload import Workload, constant

_w1 = load_experiment(Path(__file__).with_name("w1.py"))

BASE = replace(
    _w1.base,
    **{
        "model.shape.vocab_size": 24,
        "model.shape.eos_token_ids": (1,),
        "model.shape.init_std": 0.002,  # all ids are drawn alike: once in 24 the EOS
        "model.shape.max_positions": 512,
        "data.max_prompt_tokens": 16,
        "rollout.max_new_tokens": 256,
        "rollout.slots": 16,
        "rollout.compactions": 4,
        "ppo.token_sizes": 5,
        "ppo.microbatches": 8,
        "hparams.learning_rate": 1e-6,
    },
)
REWARD = constant
WORKLOAD = Workload(prompt_tokens=(16, 16))
