"""W2: a larger random Llama than W1's on fewer and longer sequences.

    ppo-jax bench w2

8 layers, d 512, 8 heads, MLP 2048, vocabulary 8192; 16 prompts of 64 tokens, responses of exactly
128, 4 epochs of 4 minibatches, separate critic, float32. Bars as for W1; peak memory (arguments and
temporaries of the compiled step, and RSS) at most 0.8 times TRL's. Expected: about 41 s an
iteration on two cores.
"""

from pathlib import Path

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment
from ppo_jax.workload import Workload

_w1 = load_experiment(Path(__file__).with_name("w1.py"))

BASE = replace(
    _w1.base,
    **{
        "model.shape.vocab_size": 8192,
        "model.shape.embed_dim": 512,
        "model.shape.num_layers": 8,
        "model.shape.num_heads": 8,
        "model.shape.num_kv_heads": 8,
        "model.shape.mlp_dim": 2048,
        "data.max_prompt_tokens": 64,
        "rollout.batch_size": 16,
        "rollout.max_new_tokens": 128,
        "ppo.microbatches": 2,  # memory
    },
)
REWARD = _w1.reward
WORKLOAD = Workload(prompt_tokens=(64, 64))
