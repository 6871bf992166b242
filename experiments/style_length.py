"""Sentences of as many words as the prompt asks for, counted on the device.

    make pipeline EXP=style_length  (SEED=1 for another seed)

`Write about the old ship in 7 words:`. Half of the sentences that SFT learns from miss the number;
the reward is 1 less the share of words too many or too few, and the KL to the SFT model keeps the
style. How often the number is met is logged beside it.
SmolLM2 in its place: README.md here, "A larger model".
Hardware: two CPU cores.

Expected: twice as often the very number. Seen with seed 0, 256 held-out prompts at temperature 1:
the score from 0.725 (SFT) to 0.905 (PPO), the number met 0.244 and 0.530, KL 3.6 nats
(experiments/results/pipeline). 5 min on one CPU core: 86 s, 179 s, 21 s.
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
from ppo_jax.rewards.words import target_words

DATA = "experiments/data/style_length"
SHAPE = ModelConfig(  # 0.36 million weights
    embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256, init_std=0.08
)

SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=48
    ),
    rollout=RolloutOptions(batch_size=32, max_new_tokens=64),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="sft", iterations=300, eval_every=20, checkpoint_every=20, keep_best="-eval/loss"
    ),
    hparams=HParams(learning_rate=3e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", remat="none"),
    data=DataOptions(
        path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=48
    ),
    rollout=RolloutOptions(batch_size=256, max_new_tokens=64),
    # One epoch of large batches: what is learnt from little noise keeps near the SFT model.
    ppo=PPOOptions(epochs=1, minibatches=4, critic_warmup=1),
    run=RunOptions(iterations=60, eval_every=25),
    hparams=HParams(
        learning_rate=3e-4,
        critic_learning_rate=1e-3,
        lam=1.0,
        value_clip=None,
        kl_coef=0.05,
    ),
)

REWARD = [target_words("words"), (0.0, target_words("words", width=1, name="exact"))]
