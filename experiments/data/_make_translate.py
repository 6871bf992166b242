"""English sentences and their German, by a small grammar: experiments/data/translate/.

    .venv/bin/python experiments/data/_make_translate.py

German asks for what English does not show: the gender of a noun, the case of its article, the
ending of its adjective, the finite verb in second place, the infinitive behind a modal at the end.
A sentence has one translation. More than 10^8 sentences are possible.
"""

import random

from _files import write
from _rows import Row, answered, disjoint

SIZES = {"sft": 600, "sft_eval": 200, "ppo": 6000, "eval": 256}
LONGEST = 46  # bytes of a German sentence

# English, plural, German, gender, German plural
AGENTS = (
    ("dog", "dogs", "Hund", "m", "Hunde"),
    ("cat", "cats", "Katze", "f", "Katzen"),
    ("man", "men", "Mann", "m", "Männer"),
    ("woman", "women", "Frau", "f", "Frauen"),
    ("child", "children", "Kind", "n", "Kinder"),
    ("girl", "girls", "Mädchen", "n", "Mädchen"),
    ("king", "kings", "König", "m", "Könige"),
    ("horse", "horses", "Pferd", "n", "Pferde"),
)
THINGS = (
    ("ball", "balls", "Ball", "m", "Bälle"),
    ("book", "books", "Buch", "n", "Bücher"),
    ("apple", "apples", "Apfel", "m", "Äpfel"),
    ("flower", "flowers", "Blume", "f", "Blumen"),
    ("house", "houses", "Haus", "n", "Häuser"),
    ("lamp", "lamps", "Lampe", "f", "Lampen"),
    ("letter", "letters", "Brief", "m", "Briefe"),
    ("cup", "cups", "Tasse", "f", "Tassen"),
)
# English singular, plural; German singular, plural, which is the infinitive as well
VERBS = (
    ("sees", "see", "sieht", "sehen"),
    ("buys", "buy", "kauft", "kaufen"),
    ("finds", "find", "findet", "finden"),
    ("brings", "bring", "bringt", "bringen"),
    ("takes", "take", "nimmt", "nehmen"),
    ("needs", "need", "braucht", "brauchen"),
)
MODALS = (("can", "kann", "können"), ("must", "muss", "müssen"))
ADJECTIVES = (("old", "alt"), ("new", "neu"), ("small", "klein"), ("red", "rot"), ("good", "gut"))
NUMBERS = (("two", "zwei"), ("three", "drei"), ("four", "vier"), ("five", "fünf"), ("six", "sechs"))
MONTHS = (("March", "März"), ("May", "Mai"), ("June", "Juni"), ("July", "Juli"))
DAYS = (("Monday", "Montag"), ("Tuesday", "Dienstag"), ("Friday", "Freitag"))
ADVERBS = (("Today", "Heute"), ("Now", "Jetzt"), ("Here", "Hier"))

DEFINITE = {
    "nominative": {"m": "der", "f": "die", "n": "das", "plural": "die"},
    "accusative": {"m": "den", "f": "die", "n": "das", "plural": "die"},
}
INDEFINITE = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
}
# Endings of adjectives: weak after der, mixed after ein, strong where no article stands.
WEAK = {
    "nominative": {"m": "e", "f": "e", "n": "e", "plural": "en"},
    "accusative": {"m": "en", "f": "e", "n": "e", "plural": "en"},
}
MIXED = {
    "nominative": {"m": "er", "f": "e", "n": "es"},
    "accusative": {"m": "en", "f": "e", "n": "es"},
}


def noun_phrase(rng: random.Random, nouns, case: str) -> tuple[str, str, bool]:
    """(English, German, is it plural) of a noun with its article or number, and an adjective."""
    english, plural, german, gender, german_plural = rng.choice(nouns)
    kind = rng.choice(("definite", "definite", "indefinite", "plural", "number"))
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.4 else None
    if kind == "indefinite":
        first, article = "a", INDEFINITE[case][gender]
        ending = MIXED[case][gender]
    elif kind == "number":
        first, article = rng.choice(NUMBERS)
        ending = "e"  # strong; the same in both cases
    else:
        number = "plural" if kind == "plural" else gender
        first, article = "the", DEFINITE[case][number]
        ending = WEAK[case][number]
    many = kind in ("plural", "number")
    words, deutsch = [first], [article]
    if adjective is not None:
        words.append(adjective[0])
        deutsch.append(adjective[1] + ending)
    words.append(plural if many else english)
    deutsch.append(german_plural if many else german)
    if words[0] == "a" and words[1][0] in "aeiou":
        words[0] = "an"
    return " ".join(words), " ".join(deutsch), many


def time_phrase(rng: random.Random) -> tuple[str, str]:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(ADVERBS)
    if kind == 1:
        hour = rng.randrange(1, 13)
        return f"At {hour} o'clock", f"Um {hour} Uhr"
    if kind == 2:
        day, (month, monat) = rng.randrange(1, 31), rng.choice(MONTHS)
        return f"On {month} {day}", f"Am {day}. {monat}"
    day, tag = rng.choice(DAYS)
    return f"On {day}", f"Am {tag}"


def sentence(rng: random.Random) -> tuple[str, str]:
    """(English, German) of a sentence."""
    subject, subjekt, many = noun_phrase(rng, AGENTS, "nominative")
    thing, objekt, _ = noun_phrase(rng, THINGS, "accusative")
    one, several, eins, mehrere = rng.choice(VERBS)
    verb, finite, last = (several, mehrere, "") if many else (one, eins, "")
    if rng.random() < 0.3:
        modal, kann, konnen = rng.choice(MODALS)
        verb, finite, last = f"{modal} {several}", konnen if many else kann, f" {mehrere}"
    if rng.random() < 0.4:
        when, wann = time_phrase(rng)
        return f"{when} {subject} {verb} {thing}.", f"{wann} {finite} {subjekt} {objekt}{last}."
    english, german = f"{subject} {verb} {thing}.", f"{subjekt} {finite} {objekt}{last}."
    return english[0].upper() + english[1:], german[0].upper() + german[1:]


def draw(rng: random.Random) -> tuple[str, Row] | None:
    english, german = sentence(rng)
    if len(german.encode()) > LONGEST:
        return None
    return german, {"prompt": f"{english}\nGerman:\n", "reference": german}


def splits() -> dict[str, list[Row]]:
    return answered(disjoint(draw, SIZES, seed="translate"))


if __name__ == "__main__":
    write("translate", splits())
