"""Responses that are meant to make a reward slow, raise, or run something."""

TEXTS = [
    *("(" * 127 + "1" + ")" * 127, "(" * 10**5, "((1))/(0)", "1/0", "9**9**9", "9" * 10**5),
    *("1+" * 10**5 + "1", "-" * 10**5, "\u0663", "\uff13", "\ud800", "\0", "$" * 10**4),
    *("__import__('os').system('touch canary')", "1 " * 5000, "1," * 3000, "1/" * 3000),
    *("\\boxed{" * 500, "\\boxed{" + "{" * 10**4, "\\boxed{" + "a" * 4000 + "}"),
    *("\\frac{" * 1000, "#### " + "9" * 10**5, "\\boxed{9**9**9}", "\n" * 10**5, "a\n" * 5000),
    *(f"<answer>{inside}</answer>" for inside in ("+1" * 128, "*".join(["99"] * 85), "9" * 255)),
    *("<answer>" * 1000, "</answer>" * 1000, "1" + " " * 10**5 + "/2", "x" * 10**5),
]
# Of the longest responses: what takes the most time where words are looked up among the others.
WORDY = [
    *("a " * 50_000, "a-" * 50_000, "but not so good " * 6000, "GOOD x " * 14_000),
    *(" ".join(map(str, range(20_000))), "\U0001f600" * 25_000, "\U0001f93d" * 25_000),
    *("!" * 10**5, "." * 10**5, "&quot;&amp;" * 9000, ":) a " * 20_000, "\u0130K" * 50_000),
    *("running " * 12_000, "\ud800 " * 50_000, "\u202e" * 10**5, "日本" * 50_000),
]
