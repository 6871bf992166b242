"""Random torch models of every family, wide enough that their predictions are far from flat."""

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from family_configs import IDS, hf_config

torch.set_num_threads(1)


def torch_config(id_: str, **changes):
    keys = hf_config(id_) | changes
    return CONFIG_MAPPING[keys["model_type"]].from_dict(keys)


def torch_model(id_: str, *, labels: int | None = None, **changes):
    """The language model of a case, or a sequence classifier with so many outputs."""
    torch.manual_seed(IDS.index(id_))
    config = torch_config(id_, **changes)
    if labels is None:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    else:
        config.num_labels = labels
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    plus_one = id_.startswith("gemma")  # their norms scale by 1 + weight
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = weight.ndim == 1 and name.endswith("weight")
            middle, spread = (0.0 if plus_one else 1.0, 0.2) if is_scale else (0.0, 0.3)
            # They scale their embeddings up: tied and as wide, every token would predict itself.
            spread *= 0.4 if plus_one and "embed" in name else 1.0
            middle += 1.0 if plus_one and ("post_attention" in name or "post_feed" in name) else 0.0
            weight.normal_(middle, spread)
    return model.eval()


def saved(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder
