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

Seen, five seeds (experiments/results/eos_bug): without the penalty no held-out response ends, in
any seed, while 0.80 to 0.98 of them begin right (SFT 0.3): as predicted, the scores do not show the
bug. With it 0.998 or more end in four seeds; in the fifth no EOS was ever sampled often enough, and
none ends after 200 iterations. That the penalty repairs the bug fails: what is never sampled is not
learnt, and when it first is hangs on chance.

Hardware: two CPU cores; 6 runs as one program and SFT for each of the three seeds took 14 min of
one core, the other 4 and their SFT 7 min.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("ablations/eos")
BASE = PARENT.base
assert PARENT.sft is not None
SFT = replace(PARENT.sft, **{"rollout.max_new_tokens": 3, "data.overlong": "truncate"})

GRID = PARENT.sweep["GRID"]
SEEDS = range(5)
METRICS = PARENT.sweep["METRICS"]
