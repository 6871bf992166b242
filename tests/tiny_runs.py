"""A tiny run on the byte model, and one reward as a rule on the device and as Python."""

import json
from pathlib import Path

from ppo_jax.config import Config, replace

T = 6
CONFIG = replace(
    Config(),
    **{
        "model.path": None,
        "model.shape.num_layers": 1,
        "model.shape.embed_dim": 32,
        "model.shape.mlp_dim": 32,
        "model.shape.init_std": 0.2,
        "model.remat": "none",
        "data.max_prompt_tokens": 12,
        "rollout.batch_size": 8,
        "rollout.max_new_tokens": T,
        "reward.kl_controller": "adaptive",
        "reward.reference": "ema",
        "reward.normalize_scores": True,
        "ppo.epochs": 2,
        "ppo.minibatches": 2,
        "parallel.data": 2,
        "run.iterations": 6,
        "run.checkpoint_every": 3,
        "run.samples": 2,
        "run.show_prompts": 0,
        "run.profile_after": 0,
        "run.compile_cache": None,
        "reward.workers": 0,  # rewards here are functions of the test
        "run.progress": False,
        "hparams.learning_rate": 1e-3,
        "hparams.kl_target": 0.1,
        "hparams.reference_decay": 0.9,
    },
)


def write_prompts(folder: Path, boost: float = 1.0) -> str:
    """Sixteen prompts of 1 to 10 letters, each with a factor of its reward."""
    rows = [{"prompt": "abcdef"[n % 6 :] * (1 + n % 2), "boost": boost} for n in range(16)]
    path = folder / f"prompts-{boost:g}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def ascii_share(rollout, columns):
    """ASCII bytes of the response over the room there is, times the column `boost` squared."""
    count_B = ((rollout.response_ids_BT < 128) * rollout.mask_BT).sum(axis=1)
    return count_B / T * columns["boost"] ** 2


def ascii_text(prompts, responses, boost):
    """The same of the text: whatever bytes are broken, the ASCII ones among them stand."""
    shares = [sum(ord(char) < 128 for char in text) / T for text in responses]
    boosted = [share * factor**2 for share, factor in zip(shares, boost, strict=True)]
    return {"share": boosted, "zero": [0.0] * len(prompts)}


def half_and_half(host=ascii_text):
    """The same score again, half of it from each side: an iteration in three programs."""
    return [(0.5, ascii_share), (0.5, host)]
