"""Whether a policy goes on ending its responses when nothing rewards the end: sums.

    ppo-jax sweep eos --vmap
    ppo-jax report eos

Question: what does a penalty for a response without a stop token hold? The reward looks at the
beginning alone: 1 if the response begins with the sum, wherever it ends. There is room for 8
tokens, of which an answer and its end take 4. A penalty of 0 is none in the same program. The bug
that the penalty is confused with, a model that has never learnt an end, is `eos_bug`.

Published: the N+ details (Huang et al. 2024, arXiv 2403.17031) subtract where a response has no
EOS, and let the pad token be another one than EOS: the same one is masked with the padding, and the
model never learns to stop. TRL's PPO trainer recommends a penalty of 1.

Prediction, before any run: SFT has taught the end, so both start with nearly all ended. With the
penalty at least 0.99 of the held-out responses end, in each of the five seeds. Without it nothing
pulls either way, and the share drifts below that: in the mean by more than the interval. Right
beginnings are as many. It fails if a seed with the penalty is below 0.99, or if the share without
it does not drift.

Seen (experiments/results/eos): as predicted. Of the held-out responses 0.9996 end with the penalty
(each seed at least 0.998), 0.73 without it (0.86, 1.00, 0.70, 0.18 and 0.92 of the seeds): nothing
pulls either way, and four seeds of five drift, one to hardly an end. Right beginnings: 0.934 and
0.918, the same within the interval.

Hardware: two CPU cores; 10 runs as one program took 6 min of both, without SFT.
"""

import jax.numpy as jnp

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.byte_stream import byte_tables
from ppo_jax.rewards.exact import agreement

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)
BASE = replace(BASE, **{"rollout.max_new_tokens": 8})


def begins(rollout, columns, tables):
    """1 if the response begins with the row's answer, else 0; float32 [B]."""
    found = agreement(rollout, columns["answer"], tables, strip=False)
    begins_BC = (found.prefix_BC == found.text_BC) & found.given_BC
    return jnp.any(begins_BC, axis=1).astype(jnp.float32)


REWARD = DeviceReward("begins", begins, byte_tables, texts=("answer",))

GRID = {"hparams.missing_eos_penalty": (0.0, 1.0)}
SEEDS = range(5)
METRICS = ("eval/ended", "eval/scores", "rollout/ended", "rollout/length_mean")
