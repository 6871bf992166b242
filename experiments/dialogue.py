"""A bakery answers its customers: SFT on answers of all sorts, a reward model of pairs, then PPO.

    make pipeline EXP=dialogue      (SEED=1 for another seed)

Chats of one or two questions about a bakery, answered by a byte model from scratch. The people who
compared answers preferred by a rule that is known here, `true_rule`: an answer should say what was
asked, be polite, and be short. SFT learns from answers good and bad as they came; the reward model
learns from pairs alone; PPO sees the reward model alone, and is judged by the rule.
SmolLM2 in its place: README.md here, "A larger model".
Hardware: two CPU cores.

Expected: the reward model tells at least 0.9 of 750 held-out pairs, and by the rule PPO wins at
least 0.7 of 256 held-out chats against SFT. Seen with seeds 0, 1 and 2: 0.965, 0.985 and 0.991 of
the pairs, by which its step and the learning rate were chosen too; PPO wins 0.901 (95 % interval
0.858 to 0.932), 0.878 (0.832 to 0.913) and 0.907 (0.865 to 0.937); the rule's mean rises from
0.400, 0.429, 0.404 to 0.926, 0.898, 0.911, at a KL of 3.4, 3.2 and 3.1 nats
(experiments/results/pipeline). The whole pipeline took 15 min on two CPU cores.
"""

import re

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
from ppo_jax.rewards.learned import learned_reward

DATA = "experiments/data/dialogue"
SHAPE = ModelConfig(  # 0.53 million weights
    num_layers=3,
    embed_dim=128,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=256,
    init_std=0.08,
)

# What may be asked, in three ways, and what the answer has to say.
FACTS = {
    "at nine": ("When do you open?", "What time do you open?", "From when are you open?"),
    "two euros": ("What is a bread?", "How much is the bread?", "What does bread cost?"),
    "by the bridge": ("Where are you?", "Where is your shop?", "How do I find you?"),
    "cash only": ("Can I pay by card?", "Do you take cards?", "How can I pay?"),
}
POLITE = ("gladly", "of course", "with pleasure", "thank you", "you are welcome", "please")
RUDE = ("whatever", "read the sign", "not again", "who cares")
SHORT = 8  # words at most


def true_rule(prompt: list[dict[str, str]], response: str) -> float:
    """How good an answer is, from -0.25 to 1: what the preferences of the data go by.

    0.5 for the fact that the last message asks for and no other fact, 0.25 for one of the `POLITE`
    phrases and -0.25 for one of the `RUDE` ones, and 0.25 for one to `SHORT` words.
    """
    asked = next(fact for fact, ways in FACTS.items() if prompt[-1]["content"].endswith(ways))
    text = response.lower()
    said = [fact for fact in FACTS if fact.lower() in text]
    score = 0.5 * (said == [asked])
    score += 0.25 * any(phrase in text for phrase in POLITE)
    score -= 0.25 * any(phrase in text for phrase in RUDE)
    words = len(re.findall(r"[a-z0-9]+", text))
    return score + 0.25 * (1 <= words <= SHORT)


def by_the_rule(prompts: list, responses: list[str]) -> list[float]:
    return [true_rule(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]


SFT = Config(
    model=ModelOptions(path=None, shape=SHAPE, remat="none"),
    data=DataOptions(
        path=f"{DATA}/sft.jsonl", eval_path=f"{DATA}/sft_eval.jsonl", max_prompt_tokens=124
    ),
    rollout=RolloutOptions(batch_size=32, max_new_tokens=80),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="sft", iterations=280, eval_every=20, checkpoint_every=20, keep_best="-eval/loss"
    ),
    hparams=HParams(learning_rate=3e-3),
)

REWARD_MODEL = Config(
    model=ModelOptions(path="@sft", remat="none"),
    data=DataOptions(
        path=f"{DATA}/pairs.jsonl", eval_path=f"{DATA}/pairs_eval.jsonl", max_prompt_tokens=124
    ),
    rollout=RolloutOptions(batch_size=64, max_new_tokens=80),
    optim=OptimOptions(schedule="linear", warmup=20, weight_decay=0.01),
    run=RunOptions(
        cell="reward-model",
        iterations=500,
        eval_every=50,
        checkpoint_every=50,
        keep_best="-eval/loss",
    ),
    hparams=HParams(learning_rate=1e-3),
)

BASE = Config(
    model=ModelOptions(path="@sft", remat="none"),
    data=DataOptions(
        path=f"{DATA}/ppo.jsonl", eval_path=f"{DATA}/eval.jsonl", max_prompt_tokens=124
    ),
    rollout=RolloutOptions(batch_size=256, max_new_tokens=80),
    # One epoch of large batches: what is learnt from little noise keeps near the SFT model.
    ppo=PPOOptions(epochs=1, minibatches=4, critic_warmup=1),
    run=RunOptions(iterations=40, eval_every=20),
    hparams=HParams(
        learning_rate=3e-4,
        critic_learning_rate=1e-3,
        lam=1.0,
        value_clip=None,
        kl_coef=0.2,
        # A response that does not end is none.
        missing_eos_penalty=1.0,
    ),
)

REWARD = learned_reward("@reward-model")
JUDGE = by_the_rule
