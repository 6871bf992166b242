"""PPO fine-tuning of language models in JAX: one iteration is one compiled program."""

__version__ = "0.1.0"
