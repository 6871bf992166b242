"""W4: SmolLM2-135M itself on the CPU, with our default shared trunk.

    ppo-jax bench w4

16 prompts of 8 to 32 random tokens, at most 48 new ones, the model's own EOS (it mostly fills the
48), 4 epochs of 4 minibatches, float32; a constant reward and a small learning rate. Bars: at least
1.6 times the speed of TRL's PPOTrainer with its four models; peak memory (arguments and temporaries
of the compiled step, and RSS) at most 0.8 times TRL's. Expected: about 38 s an iteration on two
cores.
"""

from ppo_jax.config import (
    Config,
    DataOptions,
    HParams,
    ModelOptions,
    PPOOptions,
    RolloutOptions,
)
from ppo_jax.workload import Workload, constant

BASE = Config(
    model=ModelOptions(path="smollm2-135m", compute_dtype="float32"),
    data=DataOptions(max_prompt_tokens=32),
    rollout=RolloutOptions(batch_size=16, max_new_tokens=48),
    ppo=PPOOptions(epochs=4, minibatches=4),
    hparams=HParams(learning_rate=1e-6, kl_coef=0.05, max_grad_norm=None),
)

REWARD = constant
WORKLOAD = Workload(prompt_tokens=(8, 32))
