"""Reports of the weather and summaries in a line, short or long: experiments/data/summarize/.

    .venv/bin/python experiments/data/_make_summarize.py

    Oslo, Mon. high 18, low 9, rain 6 mm, wind 30 km/h, clouds 80 %. Long:
        Oslo on Monday: mild with heavy rain, windy.
    Oslo, Mon. high 18, low 9, rain 6 mm, wind 30 km/h, clouds 80 %. Short:
        Oslo: heavy rain.

Numbers become words by thresholds; the long summary names the day, the temperature, what falls
and a wind worth naming, the short one only what matters most. The lowest temperature never
matters, the clouds only where nothing falls. A report stands in one file, with one of the two.
"""

import random

from _files import write
from _rows import Row, answered, disjoint

SIZES = {"sft": 400, "sft_eval": 200, "ppo": 5000, "eval": 256}
CITIES = """Oslo Rome Lima Cairo Paris Porto Quito Turin Dakar Hanoi Perth Basel Delhi Tokyo Accra
Miami""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
# The highest temperature, in degrees, below which the word is said.
HEAT = ((1, "freezing"), (10, "cold"), (20, "mild"), (28, "warm"), (99, "hot"))


def heat(high: int) -> str:
    return next(word for limit, word in HEAT if high < limit)


def falling(high: int, rain: int) -> str | None:
    """What comes down; None where nothing does."""
    if rain == 0:
        return None
    if high < 1:
        return "snow"
    return "heavy rain" if rain >= 5 else "some rain"


def sky(clouds: int) -> str:
    return "clear sky" if clouds < 50 else "clouds"


def long_summary(city: str, day: str, high: int, rain: int, wind: int, clouds: int) -> str:
    blow = ", storm" if wind >= 50 else ", windy" if wind >= 25 else ""
    return f"{city} on {day}: {heat(high)} with {falling(high, rain) or sky(clouds)}{blow}."


def short_summary(city: str, high: int, rain: int, wind: int, clouds: int) -> str:
    """The first of: a storm, heavy rain or snow, extreme heat or cold, wind, some rain, the sky."""
    down, word = falling(high, rain), heat(high)
    if wind >= 50:
        first = "storm"
    elif down in ("heavy rain", "snow"):
        first = down
    elif word in ("freezing", "hot"):
        first = word
    elif wind >= 25:
        first = "windy"
    else:
        first = down or sky(clouds)
    return f"{city}: {first}."


def draw(rng: random.Random) -> tuple[str, Row]:
    city, day = rng.choice(CITIES), rng.choice(DAYS)
    high = rng.randrange(-9, 37)
    low = high - rng.randrange(3, 12)
    rain = rng.choice((0, 0, 0, rng.randrange(1, 5), rng.randrange(5, 30)))
    wind = rng.choice((rng.randrange(2, 25), rng.randrange(2, 25), rng.randrange(25, 80)))
    clouds = 5 * rng.randrange(0, 20)
    report = (
        f"{city}, {day[:3]}. high {high}, low {low}, rain {rain} mm, wind {wind} km/h, "
        f"clouds {clouds} %."
    )
    if rng.random() < 0.4:
        asked, summary = "Short", short_summary(city, high, rain, wind, clouds)
    else:
        asked, summary = "Long", long_summary(city, day, high, rain, wind, clouds)
    return report, {"prompt": f"{report}\n{asked}:\n", "reference": summary}


def splits() -> dict[str, list[Row]]:
    return answered(disjoint(draw, SIZES, seed="summarize"))


if __name__ == "__main__":
    write("summarize", splits())
