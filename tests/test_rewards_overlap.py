"""ROUGE-L, BLEU and chrF: published examples, and their formulas written out anew."""

import math
import random
import subprocess
import sys
from collections import Counter

import pytest

from ppo_jax.errors import ConfigError, DataError
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.checks import need_package
from ppo_jax.rewards.overlap import bleu, chrf, rouge_l

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "runs"]


def sentences(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


HYPOTHESES, REFERENCES = sentences(200, 0), sentences(200, 1)


def scores(reward, responses=HYPOTHESES, reference=REFERENCES):
    return reward([""] * len(responses), responses, reference=reference)


def longest_common(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        above = row[:]
        for j, y in enumerate(b):
            row[j + 1] = above[j] + 1 if x == y else max(row[j], above[j + 1])
    return row[-1]


def f1(a, b):
    common = longest_common(a.split(), b.split())
    return 2 * common / (len(a.split()) + len(b.split()))


def grams(items, n):
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def bleu_oracle(text, reference):
    """Effective order, exponential smoothing, one reference."""
    words, others = text.split(), reference.split()
    logs, smooth = [], 1
    for n in range(1, min(len(words), 4) + 1):
        ours = grams(words, n)
        match = (ours & grams(others, n)).total()
        if not match:
            if n == 1:
                return 0.0
            smooth *= 2
            match = 1 / smooth
        logs.append(math.log(match / ours.total()))
    brevity = min(0, 1 - len(others) / len(words))
    return math.exp(sum(logs) / len(logs) + brevity)


def chrf_oracle(text, reference):
    a, b = text.replace(" ", ""), reference.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        ours, theirs = grams(a, n), grams(b, n)
        if ours and theirs:
            match = (ours & theirs).total()
            precisions.append(match / ours.total())
            recalls.append(match / theirs.total())
    p, r = (sum(some) / len(some) for some in (precisions, recalls))
    return 5 * p * r / (4 * p + r) if p + r else 0.0


def test_rouge_is_the_f1_of_the_longest_common_subsequence():
    want = [f1(a, b) for a, b in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert scores(rouge_l()) == pytest.approx(want, abs=1e-12)
    # The package's own example: 5 common words of 8 and 9.
    text, other = (
        "The quick brown dog jumps on the log.",
        "The quick brown fox jumps over the lazy dog",
    )
    assert scores(rouge_l(), [text], [other]) == pytest.approx([10 / 17])


def test_bleu_is_the_published_formula():
    want = [bleu_oracle(a, b) for a, b in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert min(want) == 0 and max(want) > 0.5
    assert scores(bleu()) == pytest.approx(want, abs=1e-9)
    # By hand: 5/6 words, 3/5 pairs, 1/4 triples, (1/2)/3 quadruples.
    by_hand = (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    text, other = "the cat sat on the mat", "the cat is on the mat"
    assert scores(bleu(), [text], [other]) == pytest.approx([by_hand])


def test_chrf_is_the_published_formula():
    want = [chrf_oracle(a, b) for a, b in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert scores(chrf()) == pytest.approx(want, abs=1e-9)
    assert scores(chrf(word_order=2)) != pytest.approx(want, abs=1e-3)
    assert scores(chrf(), ["日本語"], ["日本語"]) == [1.0]


@pytest.mark.parametrize("make", [rouge_l, bleu, chrf])
def test_what_holds_for_all(make):
    reward = make()
    assert scores(reward, HYPOTHESES, HYPOTHESES) == pytest.approx([1.0] * 200)
    assert max(scores(reward, HYPOTHESES, HYPOTHESES)) <= 1
    assert scores(reward, ["", "xyzzy"], ["cat", "the dog"]) == [0, 0]
    assert scores(reward, [], []) == []
    # One string is a list of one; a further reference never makes it worse.
    assert scores(reward, reference=[[r] for r in REFERENCES]) == scores(reward)
    both = scores(reward, reference=list(map(list, zip(REFERENCES, HYPOTHESES, strict=True))))
    assert both == pytest.approx([1.0] * 200)
    assert [part.name for part in parse_rewards([reward, reward])] == [
        make.__name__,
        f"{make.__name__}_2",
    ]
    for bad in ([], None, 3, ["a", 3]):
        with pytest.raises(DataError, match="column reference: .* expected a string, or a list"):
            scores(reward, ["a"], [bad])
    with pytest.raises(DataError, match="a response is a NoneType"):
        scores(reward, [None], ["a"])


def test_options():
    assert scores(rouge_l(stem=True), ["running dogs"], ["run dog"]) == [1.0]
    assert scores(rouge_l(), ["running dogs"], ["run dog"]) == [0.0]
    assert scores(bleu(lowercase=True), ["A B"], ["a b"]) == pytest.approx([1.0])
    assert scores(bleu(tokens="char"), ["日本語だ"], ["日本語だ"]) == pytest.approx([1.0])
    for make, message in (
        (lambda: rouge_l(stem="yes"), "rouge_l: stem is 'yes'; expected True or False"),
        (lambda: bleu(tokens="flores200"), "bleu: tokens is 'flores200'; expected one of 13a"),
        (lambda: chrf(word_order=-1), "chrf: word_order is -1; expected 0 to 9"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rouge_score is not installed.*'\.\[rewards\]'"):
        rouge_l()
    with pytest.raises(ConfigError, match=r"reward x: .*install math_verify .*'\.\[math\]'"):
        need_package("x", "math_verify", "math")


def test_packages_are_imported_by_the_first_call_alone():
    code = """
import sys
from ppo_jax.rewards import answers, compound, endpoint, language, math_answers, overlap
rewards = [overlap.rouge_l(), overlap.bleu(), overlap.chrf(), math_answers.math_answer()]
rewards += [compound.compound(), language.language(), answers.countdown()]
rewards += [endpoint.endpoint("http://127.0.0.1")]
heavy = {"rouge_score", "nltk", "sacrebleu", "py3langid", "vaderSentiment", "sympy", "jax"}
print(sorted(heavy & set(sys.modules)))
rewards[0]([""], ["a"], ["a"])
print("rouge_score" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "True"]
