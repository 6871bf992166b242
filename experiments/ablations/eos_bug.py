"""The negative control of `eos`: a policy whose SFT has never seen an end.

    ppo-jax sweep eos_bug --vmap
    ppo-jax report eos_bug

Question: does the known bug, pad and EOS being one token, so that the mask of the padding takes the
end out of SFT's loss, show in PPO's own numbers? That token cannot be masked here: masks come from
lengths. What the bug does is had without it: SFT's responses are cut at 3 tokens, before their EOS.
PPO, reward and penalty are those of `eos`.

Published: with pad and EOS the same the model never learns to stop (the N+ details, Huang et al.
2024, arXiv 2403.17031).

Prediction, before any run: without the penalty fewer than 0.05 of the held-out responses end, in
each seed, while the right beginnings rise as in `eos`: the scores do not show the bug, the ends do.
With the penalty more than 0.9 end in each seed: among the thousands of tokens of an iteration one
is an EOS now and then, and it is worth as much as a right sum. It fails if more than 0.05 end
without the penalty; that the penalty repairs the bug fails if a seed is below 0.9.

Hardware: two CPU cores; 6 runs of about 1.5 minutes, and SFT of 40 s for each of the three seeds,
by estimate. Not yet run.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("ablations/eos")
BASE = PARENT.base
assert PARENT.sft is not None
SFT = replace(PARENT.sft, **{"rollout.max_new_tokens": 3, "data.overlong": "truncate"})

GRID = PARENT.sweep["GRID"]
SEEDS = range(3)
METRICS = PARENT.sweep["METRICS"]
