"""Where Adam's epsilon stands, and how large it is: sums, right or wrong.

    ppo-jax sweep adam --vmap
    ppo-jax report adam

Question: are the first steps of PPO larger with the form of Adam that PyTorch and optax have, in
which epsilon is added after the bias correction, than with TensorFlow's, in which it is added
before?

Published: the reproduction of lm-human-preferences ("The N implementation details of RLHF with
PPO", Hugging Face blog, 2023) finds PyTorch's Adam more aggressive in early updates, with larger
approximate KL and clipped share, and writes TensorFlow's form out.

Prediction, before any run: in TensorFlow's form epsilon counts 1/sqrt(1 - 0.999^t) times as much:
32 times in the first step, 2.4 times after 25 iterations of 8. With 1e-5 the means of
`policy/approxkl_avg` and `policy/clipfrac_avg` over the first 50 iterations are higher in optax's
form than in TensorFlow's, in each of the three seeds; with 1e-8 both forms lie within 5 % of each
other, epsilon being far below the gradients. Held-out sums at the end do not differ. It fails if
TensorFlow's form is as high with 1e-5, or if a form or an epsilon changes the sums by more than the
interval.

Seen, three seeds (experiments/results/adam), against the prediction: with 1e-5 the KL of the first
50 iterations is 0.091 nats in optax's form and 0.089 in TensorFlow's, higher in two seeds and lower
in one (clipped share 0.067 and 0.065). The effect is over sooner: in the first iteration alone,
where epsilon counts 32 to 11 times as much, it is 0.48, 0.95 and 0.80 nats in optax's form and
0.36, 0.79 and 0.54 in TensorFlow's (curves.csv), higher in each seed, as published. With 1e-8 the
forms lie within 1 % of each other there and within 4 % over 50 iterations. Held-out sums do not
differ: 0.953, 0.953, and 0.932, 0.931 with 1e-8.

Hardware: two CPU cores; 12 runs as four programs took 16 min of one core, SFT of each seed 1 min.
"""

from ppo_jax.config import replace
from ppo_jax.experiment import load_experiment

PARENT = load_experiment("arithmetic")
BASE = replace(
    PARENT.base, **{"rollout.batch_size": 256, "run.iterations": 200, "run.eval_every": 50}
)

GRID = {"optim.adam": ("optax", "tensorflow"), "optim.eps": (1e-5, 1e-8)}
SEEDS = range(3)
METRICS = ("eval/scores", "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg")
WINDOWS = {"policy/approxkl_avg": (0, 50), "policy/clipfrac_avg": (0, 50)}
