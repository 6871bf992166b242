"""What lambda of GAE does where one reward comes at the end: sums, right or wrong.

    ppo-jax sweep gae_lambda     (--list shows the cells, --vmap runs them as one program)
    ppo-jax report gae_lambda

Question: does a policy that is paid once, after its last token, learn less the more an advantage
leans on the critic (lambda below 1)?

Published: RLOO (Ahmadian et al. 2024, arXiv 2402.14740) finds lambda 1 best in RLHF and the reward
falling monotonically towards lambda 0. VC-PPO (arXiv 2503.01491) and VAPO (arXiv 2504.05118): with
lambda 0.95 a reward at the end decays on its way to the first tokens, by 0.95^n over n of them. In
control 0.9 to 0.95 is usual.

Prediction, before any run: lambda 0 has the fewest held-out sums right, by more than its interval,
the rest rises with lambda. A response is 4 tokens, over which 0.95 leaves 0.86 of the reward and
0.9 leaves 0.73: between 0.9, 0.95 and 1 five seeds show no difference; 0.5, which leaves 0.13, lies
below them. It fails if lambda 0 is not the lowest, or if 0.95 beats 1 by more than the interval.

Seen, five seeds (experiments/results/gae_lambda): of the held-out sums 0.003, 0.574, 0.896, 0.907
and 0.940 right with lambda 0, 0.5, 0.9, 0.95 and 1, SFT 0.31: as predicted, but that 0.9 is lower
than 1 by 0.044 (0.011 to 0.080). From other SFTs of the same seeds, on two other days, 0.006,
0.448, 0.930, 0.902 and 0.907, and 0.000, 0.414, 0.936, 0.915 and 0.925: between the last three no
difference holds. Lambda 0 does not only learn less, it loses what SFT had: but for the last token,
all it follows are differences between the critic's values, and of the responses, of which 0.3 were
right, after 5 iterations 0.03 to 0.14 are and in the end 0.01 at most, in every seed.

Hardware: two CPU cores; 25 runs as one program took 19 min of one core, SFT of each seed 1 min. On
another day 25 runs one after the other and SFT took 25 min.
The 20 of lambda 0.5 to 1 took 1,072 s of it; with `--vmap --only lam=0.5 lam=0.9 lam=0.95 lam=1`
they take 586 s, start and end in it, and their iterations 494 s of 688.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)  # lambda 1, gamma 1, no KL penalty

GRID = {"hparams.lam": (0.0, 0.5, 0.9, 0.95, 1.0)}
SEEDS = range(5)
METRICS = ("eval/scores", "objective/scores", "value/explained_variance")
