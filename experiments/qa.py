"""Questions about the animals of a zoo: a byte model learns from rewards what it was never told.

    make pipeline EXP=qa ARGS="--eval.samples 4"    (SEED=1 for another seed)

`Hello. What does Momo eat?` is `fish`. There are 128 such facts, each asked for in five forms with
eight openings (experiments/data/_make_qa.py). SFT sees half of the facts; PPO is asked for all, in
other words than the held-out questions, and told whether an answer is right, which is found on the
device.
SmolLM2 in its place: README.md here, "A larger model".
Hardware: two CPU cores.

Expected: more right than SFT's best of four. Seen with seeds 0, 1 and 2, 256 held-out questions at
temperature 1: SFT 0.540, 0.560, 0.568, its best of four 0.590, 0.590, 0.605, PPO 0.742, 0.760,
0.756 (experiments/results/pipeline). SFT's loss on held-out questions of the facts it was told is
least where its rate reaches 0, or 100 steps before. 6 min on one CPU core: 28 s, 340 s, 12 s.
"""

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelConfig,
    ModelOptions,
    OptimOptions,
    PPOOptions,
    RolloutOptions,
    RunOptions,
)
from ppo_jax.rewards.exact import exact_match

DATA = "experiments/data/qa"
SHAPE = ModelConfig(  # 0.36 million weights
    embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256, init_std=0.08
)

SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=44
    ),
    rollout=RolloutOptions(batch_size=32, max_new_tokens=8),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="sft", iterations=300, eval_every=20, checkpoint_every=20, keep_best="-eval/loss"
    ),
    hparams=HParams(learning_rate=3e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", remat="none"),
    data=DataOptions(
        path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=44
    ),
    rollout=RolloutOptions(batch_size=512, max_new_tokens=8),
    ppo=PPOOptions(epochs=2, minibatches=4, critic_warmup=1),
    optim=OptimOptions(schedule="linear"),
    run=RunOptions(iterations=160, eval_every=40),
    hparams=HParams(
        learning_rate=4e-4,
        critic_learning_rate=1e-3,
        lam=1.0,
        vf_coef=0.5,
        value_clip=None,
        kl_coef=0.02,
    ),
)

REWARD = exact_match("answer")
