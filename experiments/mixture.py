"""Four tasks in one run, each with its own reward and its own mean in the log.

    make pipeline EXP=mixture ARGS="--eval.samples 4"      (SEED=1 for another seed)

Small sisters of `translate`, `summarize`, `qa` and `style_length` in one file, told apart by the
column `task`: two rewards of the host, two of the device. `reward/<task>` and `eval/<task>` are
means over the rows of a task alone.
SmolLM2 in its place: README.md here, "A larger model".
Hardware: two CPU cores.

Expected: every task above SFT. Seen with seed 0, 400 held-out rows at temperature 1, SFT and PPO
(experiments/results/pipeline): translate 0.696, 0.765; summarize 0.855, 0.906; qa 0.590, 0.790;
length 0.748, 0.940; all 0.722, 0.850, where SFT's best of four is 0.840. 6 min on one CPU core:
83 s, 263 s, 27 s.
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
from ppo_jax.rewards.by_task import by_task
from ppo_jax.rewards.exact import exact_match
from ppo_jax.rewards.overlap import chrf, rouge_l
from ppo_jax.rewards.words import target_words

DATA = "experiments/data/mixture"
SHAPE = ModelConfig(  # 0.36 million weights
    embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256, init_std=0.08
)

SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=48
    ),
    rollout=RolloutOptions(batch_size=32, max_new_tokens=48),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="sft", iterations=500, eval_every=20, checkpoint_every=20, keep_best="-eval/loss"
    ),
    hparams=HParams(learning_rate=3e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", remat="none"),
    data=DataOptions(
        path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=48
    ),
    rollout=RolloutOptions(batch_size=256, max_new_tokens=48),
    # One epoch of large batches: what is learnt from little noise keeps near the SFT model.
    ppo=PPOOptions(epochs=1, minibatches=4, critic_warmup=1),
    run=RunOptions(iterations=150, eval_every=25),
    hparams=HParams(
        learning_rate=3e-4,
        critic_learning_rate=1e-3,
        lam=1.0,
        value_clip=None,
        kl_coef=0.01,
    ),
)

REWARD = by_task(
    {
        "translate": chrf(),
        "summarize": rouge_l(),
        "qa": exact_match("reference"),
        "length": target_words("words"),
    }
)
