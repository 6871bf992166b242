"""A byte model from scratch adds two numbers: a few sums by SFT, all others by reward.

    make pipeline EXP=arithmetic    (SEED=1 for another seed)

All 10,000 sums of two numbers below 100, written with two digits each and answered from the last
digit on: `37+85=` is `221`. SFT is kept at its lowest loss on held-out sums like its own; what it
lacks, it lacks for want of data: 1,200 sums with the digits 0 to 6 and 14 with a 7, 8 or 9. PPO
practises all sums but those held out and is told whether a response is right, which is found on the
device.
Without a critic: ARGS="--ppo.advantage reinforce --run.cell reinforce", and ARGS="--ppo.advantage
rloo --rollout.samples_per_prompt 4 --run.cell rloo". SmolLM2 in its place: README.md here, "A
larger model".

Expected: of 507 held-out sums SFT has about 0.3 right, PPO 0.95 or more. Seen at temperature 1,
seeds 0 to 4 (experiments/results/pipeline): SFT 0.316, 0.310, 0.313, 0.314, 0.274; PPO 0.990,
0.996, 0.959, 0.987, 0.983; REINFORCE 0.988, 0.997, 0.953, 0.985, 0.743; RLOO 0.987, 0.977, 0.988,
0.993, 0.962. One CPU core took 28 s for SFT and 103 to 110 s for each of the others, compilation
and all.
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

DATA = "experiments/data/arithmetic"
SHAPE = ModelConfig(  # 0.36 million weights
    embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256, init_std=0.03
)

SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=8
    ),
    rollout=RolloutOptions(batch_size=64, max_new_tokens=4),
    ppo=PPOOptions(token_sizes=None),
    optim=OptimOptions(warmup=20, weight_decay=0.1),
    run=RunOptions(
        cell="sft", iterations=800, eval_every=20, checkpoint_every=20, keep_best="-eval/loss"
    ),
    hparams=HParams(learning_rate=1e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", remat="none"),
    data=DataOptions(path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=8),
    rollout=RolloutOptions(batch_size=512, max_new_tokens=4),
    # All sequences are of one length: by padded rows.
    ppo=PPOOptions(epochs=2, minibatches=4, token_sizes=None),
    optim=OptimOptions(schedule="linear"),
    run=RunOptions(iterations=300, eval_every=25),
    hparams=HParams(learning_rate=4e-4, lam=1.0, vf_coef=0.5, value_clip=None, kl_coef=0.0),
)

REWARD = exact_match("answer")
