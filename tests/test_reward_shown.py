"""What a host reward gives and raises that has no text: its row fails, as with all that is no
number."""

from fractions import Fraction

import numpy as np
import pytest

from ppo_jax.errors import RewardError
from ppo_jax.rewards.host import call
from test_reward_host import NUMBERS, ROWS, masked, part_of


class Mute:
    """A value that cannot be shown."""

    def __str__(self):
        raise TypeError("no text")

    __repr__ = __str__


class MuteError(Mute, Exception):
    pass


class MuteList(list):
    def __iter__(self):
        raise OSError("no longer there")


UNSHOWN = {"int": 10**5000, "negative": -(10**5000), "Fraction": Fraction(10**5000, 3)}
UNSHOWN |= {"Mute": Mute(), "list": [10**5000], "dict": {10**5000: 1.0}}


@pytest.mark.parametrize("kind", UNSHOWN)
def test_a_value_that_cannot_be_shown_fails_its_row(kind):
    value = UNSHOWN[kind]

    def reward(prompts, responses):
        return [1.0, value, 2.0, 3.0]

    where = rf"reward reward, row 11 \(prompt 'one'\): .* of type {type(value).__name__} is not a"
    with pytest.raises(RewardError, match=where) as caught:
        call(part_of(reward), ROWS)
    assert "\n" not in str(caught.value)
    found = masked(reward)
    np.testing.assert_array_equal(found.scores["reward"], [1, np.nan, 2, 3])
    assert list(found.failed) == [11] and type(value).__name__ in found.failed[11]


RESULTS = {
    "int": lambda: 10**5000,
    "Mute": Mute,
    "MuteList": lambda: MuteList([1.0] * 4),
    "dict": lambda: {10**5000: [1.0] * 4},
    "set": lambda: {10**5000},
}


@pytest.mark.parametrize("kind", RESULTS)
def test_an_answer_that_cannot_be_shown_is_refused(kind):
    def reward(prompts, responses):
        return RESULTS[kind]() if len(prompts) > 1 else [2.0]

    with pytest.raises(
        RewardError, match=rf"reward reward returned .*\b{kind}\b.* row 10"
    ) as caught:
        call(part_of(reward), ROWS)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(masked(reward).scores["reward"], [2, 2, 2, 2])


def test_an_error_that_cannot_be_shown_is_named():
    def reward(prompts, responses):
        raise MuteError

    with pytest.raises(RewardError, match="raised on a batch of 4 rows, .*: MuteError"):
        call(part_of(reward), ROWS)
    assert list(masked(reward).failed) == NUMBERS
