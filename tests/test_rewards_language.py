"""The language of a response, and VADER's compound score: published examples and sums."""

import pytest

from ppo_jax.errors import ConfigError, DataError
from ppo_jax.rewards.base import column_parameters, parse_rewards
from ppo_jax.rewards.compound import compound
from ppo_jax.rewards.language import language

# The first article of the Universal Declaration of Human Rights.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi w swojej godności i prawach.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
}
CODES, TEXTS = list(ARTICLE), list(ARTICLE.values())


def test_articles_are_in_their_language():
    own = language()([""] * len(TEXTS), TEXTS, language=CODES)
    assert min(own) > 0.6
    for code in ("en", "ja"):
        chances = language(code)([""] * len(TEXTS), TEXTS)
        assert chances[CODES.index(code)] == own[CODES.index(code)]
        assert max(p for other, p in zip(CODES, chances, strict=True) if other != code) < 0.1


def test_probabilities_of_all_languages_sum_to_one():
    with pytest.raises(
        ConfigError, match="language: 'xx' is not known; expected one of "
    ) as raised:
        language("xx")
    codes = str(raised.value).split("expected one of ")[1].split(", ")
    assert len(codes) > 90 and set(CODES) <= set(codes)
    for text in [*TEXTS, "", "ok", "12 + 30 = 42", "def f(x): return x", "\ud800\0", "你好 world"]:
        chances = language()([""] * len(codes), [text] * len(codes), language=codes)
        assert min(chances) >= 0 and sum(chances) == pytest.approx(1, abs=1e-5)
    assert language("en")([""] * 2, ["", "\0"]) == pytest.approx([1 / len(codes)] * 2, rel=0.05)


def test_the_language_of_a_row_must_be_known():
    for bad in ("xx", None, 3, ["en"], "EN"):
        with pytest.raises(DataError, match="column language: .* is not known"):
            language()([""], ["hello"], language=[bad])
    with pytest.raises(DataError, match="2 values for 1 responses"):
        language()([""], ["hello"], language=["en", "de"])


def test_only_without_a_code_is_the_column_taken():
    assert [p.name for p in column_parameters(language())] == ["language"]
    assert column_parameters(language("en")) == []
    assert [part.name for part in parse_rewards([language("en"), language()])] == [
        "language",
        "language_2",
    ]


def test_vaders_published_examples():
    pytest.importorskip("vaderSentiment")
    examples = {  # the package's README
        "VADER is smart, handsome, and funny.": 0.8316,
        "VADER is smart, handsome, and funny!": 0.8439,
        "VADER is very smart, handsome, and funny.": 0.8545,
        "VADER is VERY SMART, handsome, and FUNNY!!!": 0.9342,
        "VADER is not smart, handsome, nor funny.": -0.7424,
        "The book was good.": 0.4404,
        "At least it isn't a horrible book.": 0.431,
        "Make sure you :) or :D today!": 0.8633,
        "Today SUX!": -0.5461,
        "Not bad at all": 0.431,
        "": 0.0,
    }
    scores = compound()([""] * len(examples), list(examples))
    assert dict(zip(examples, scores, strict=True)) == examples
    assert parse_rewards(compound())[0].name == "compound"
