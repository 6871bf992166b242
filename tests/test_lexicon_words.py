"""What the word-list reward says of words and valences that it cannot use."""

import math
import re

import numpy as np
import pytest

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.lexicon import lexicon


@pytest.mark.parametrize(
    ("words", "alpha", "message"),
    [
        ({}, 15.0, "empty"),
        ({"don't": 1.0}, 15.0, "don't"),
        ({"two, words": 1.0}, 15.0, "two words"),
        ({"good": math.nan}, 15.0, "is nan; expected a finite number; nearest valid: 0"),
        ({"good": math.inf}, 15.0, "is inf; expected a finite number; nearest valid: 3.40282e+38"),
        ({"good": "x"}, 15.0, "the valence of 'good' is 'x'; expected a finite number; nearest"),
        ({"good": "-2"}, 15.0, "is '-2'; expected a finite number; nearest valid: -2"),
        ({"good": "nan"}, 15.0, "is 'nan'; expected a finite number; nearest valid: 0"),
        ({"good": None}, 15.0, "is None; expected a finite number; nearest valid: 0"),
        ({"good": True}, 15.0, "is True; expected a finite number; nearest valid: 1"),
        (
            {"good": 10**400},
            15.0,
            "is beyond float32; expected a finite number; nearest valid: 3.4",
        ),
        (
            {"good": -(10**5000)},
            15.0,
            "is beyond float32; expected a finite number; nearest valid: -",
        ),
        ({"good": -1e39}, 15.0, "is beyond float32; expected a finite number; nearest valid: -3.4"),
        ({5: 1.0}, 15.0, "the word 5 is of type int; expected a string, such as '5'"),
        (
            {b"good": 1.0},
            15.0,
            "the word b'good' is of type bytes; expected a string, such as 'good'",
        ),
        ({10**5000: 1.0}, 15.0, "(ValueError) is of type int; expected a string"),
        ([("good", 1.0)], 15.0, "words is a list; expected a dict of words and their valences"),
        ({"good": 1.0}, "15", "alpha is '15'; expected a finite number above 0"),
        ({"good": 1.0}, 10**400, "alpha is beyond float32; expected a finite number above 0"),
        ({"good": 1.0, "GOOD": 2.0}, 15.0, "twice"),
        ({"good": 1.0}, 0.0, "alpha is 0.0; expected a finite number above 0"),
    ],
)
def test_unusable_lexica(words, alpha, message):
    with pytest.raises(ConfigError, match=f"^reward mine: .*{re.escape(message)}") as raised:
        lexicon(words, "mine", alpha)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_whole_numbers_and_those_of_numpy_are_valences():
    assert lexicon({"good": 1, "bad": np.float32(-2), "large": 3.4e38}).name == "lexicon"
