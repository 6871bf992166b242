"""Scores that host rewards return as torch's tensors."""

import numpy as np
import pytest
import torch

from ppo_jax.errors import RewardError
from ppo_jax.rewards import host
from ppo_jax.rewards.base import parse_rewards

ROWS = host.Rows([0, 1, 2], ["first", "second", "third"], ["a", "bb", "ccc"], {})


def score(value):
    (part,) = parse_rewards(lambda prompts, responses: value)
    return host.call(part, ROWS).scores


@pytest.mark.parametrize(
    "value",
    [torch.tensor([0.0, 1.5, -2.0]), [torch.tensor(0.0), 1.5, torch.tensor(-2)]],
)
def test_numbers(value):
    (scores,) = score(value).values()
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [0.0, 1.5, -2.0])


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (torch.ones(3, requires_grad=True), ["returned a Tensor", "requires grad"]),
        ([0, torch.ones((), requires_grad=True), 0], ["row 1", "Tensor"]),
    ],
)
def test_tensors_that_need_a_gradient(value, parts):
    with pytest.raises(RewardError) as caught:
        score(value)
    assert all(part in str(caught.value) for part in parts)
