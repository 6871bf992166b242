"""Classification as generation: a byte model from scratch answers with the label's word.

    make pipeline EXP=nlu           (SEED=1 for another seed)

Three tasks in one file: the sentiment of a sentence (positive, negative, neutral), the intent of a
request (alarm, weather, music, travel, food) and the kind of a name in a sentence (person, place,
food). SFT sees few sentences, which hold a part of the words; the labels of the others are learnt
from reward, 1 for the label's word and nothing else.
SmolLM2 in its place: README.md here, "A larger model".

Expected: twice as many right as by SFT. Seen with seed 0, 300 held-out sentences at temperature 1:
SFT 0.402, PPO 0.818. 4 min on one of two busy CPU cores.
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

DATA = "experiments/data/nlu"
SHAPE = ModelConfig(  # 0.36 million weights
    embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256, init_std=0.08
)

SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=64
    ),
    rollout=RolloutOptions(batch_size=60, max_new_tokens=9),
    optim=OptimOptions(warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="sft", iterations=120, eval_every=10, checkpoint_every=10, keep_best="-eval/loss"
    ),
    hparams=HParams(learning_rate=1e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", remat="none"),
    data=DataOptions(
        path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=64
    ),
    rollout=RolloutOptions(batch_size=256, max_new_tokens=9),
    ppo=PPOOptions(epochs=2, minibatches=4),
    run=RunOptions(iterations=60, eval_every=20),
    hparams=HParams(learning_rate=3e-4, lam=1.0, vf_coef=0.5, value_clip=None, kl_coef=0.01),
)

REWARD = exact_match("answer")
