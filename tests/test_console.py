"""What is shown: plain where there is no terminal, and model text that cannot do anything."""

import io
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from ppo_jax.console import (
    Output,
    duration,
    iteration_line,
    show_comparison,
    show_header,
    show_progress,
    show_samples,
    show_summary,
    visible,
    warn,
)

METRICS = {
    "objective/scores": 0.25,
    "objective/kl": 1.5,
    "objective/kl_coef": 0.05,
    "rollout/length_mean": 20.0,
    "throughput/total": 1234.5,
    "time/iteration": 30.0,
}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]")
NASTY = "a[bold]b[/bold][/] \x1b[31mred\x1b[0m \x9b2J \r\n\t\x07 \u202eflip \ud800 [link=x]\\"


def console(terminal=False, width=200):
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        color_system="standard" if terminal else None,
        _environ={},
    )


def text_of(shown):
    return shown.file.getvalue()


def test_plain_lines_without_a_terminal():
    plain = console(width=40)  # narrower than a line, which must stay in one piece
    with show_progress(4, console=plain) as update:
        for done in range(1, 5):
            update(done, METRICS)
            assert len(text_of(plain).splitlines()) == done  # at once, not at the end
    lines = text_of(plain).splitlines()
    assert not CONTROL.search(text_of(plain))
    assert lines[0].startswith("1/4  eta 1:30  ")
    assert lines[-1].startswith("4/4  eta 0:00  ")
    for word in ("score 0.250", "kl 1.500", "kl_coef 0.0500", "length 20.0", "tok/s", "s/it 30.00"):
        assert word in lines[0]


def test_bar_on_a_terminal():
    live = console(terminal=True, width=120)
    with show_progress(4, start=1, console=live) as update:
        update(2, METRICS)
        live.print("between")
    assert "\x1b[" in text_of(live) and "2/4" in text_of(live) and "between" in text_of(live)
    plain = console(terminal=True)
    with show_progress(4, bar=False, console=plain) as update:
        update(2, METRICS)
    assert len(text_of(plain).splitlines()) == 1


def test_eta_forgets_the_compilation():
    plain = console()
    with show_progress(103, console=plain) as update:
        for done, seconds in enumerate([500.0, 1.0, 1.0], start=1):
            update(done, {"time/iteration": seconds})
    assert text_of(plain).splitlines()[-1].startswith("3/103  eta 1:40")


def test_iteration_line_takes_what_is_there():
    assert iteration_line({}) == ""
    assert iteration_line({"objective/kl": math.nan, "unknown": 1.0}) == "kl nan"
    phases = iteration_line({f"throughput/{phase}": 10.0 for phase in ("rollout", "update")})
    assert phases == "rollout tok/s 10  update tok/s 10"


@pytest.mark.parametrize("terminal", [False, True])
def test_model_text_is_literal(terminal):
    row = {"prompt": NASTY, "response": NASTY, "score": 0.5}
    shows = [
        lambda out: show_samples(NASTY, [row], console=out),
        lambda out: show_comparison([row], [row], console=out),
        lambda out: show_header({"model": NASTY}, console=out),
        lambda out: show_summary([], 1.0, Path(NASTY), console=out),
    ]
    for show in shows:
        out = console(terminal=terminal)
        show(out)
        text = text_of(out)
        assert "[bold]b[/bold][/]" in text and "[link=x]" in text
        assert "\\x1b[31m" in text and "\x1b[31m" not in text and "\x9b" not in text
        assert "\\u202e" in text and "\u202e" not in text and "\r" not in text
        if not terminal:
            assert not CONTROL.search(text)


def test_visible():
    assert visible("plain ünï 漢字 😀") == "plain ünï 漢字 😀"
    assert visible("\x1b\n\u2028") == "\\x1b\\n\\u2028"
    assert visible("é", "ascii") == "\\xe9"
    spaces = ("\xa0",)  # not "printable", yet harmless
    for code in range(0x300):
        assert visible(chr(code)).isprintable() or chr(code) in spaces


def test_samples_hold_all_columns():
    out = console()
    rows = [{"prompt": f"p{k}", "response": f"r{k}", "score": k / 8} for k in range(3)]
    show_samples("after 3 iterations", [*rows, {"prompt": "q", "response": "s"}], console=out)
    for word in ("after 3 iterations", "prompt", "continuation", "score", "p2", "r2", "0.250"):
        assert word in text_of(out)


def test_comparison_pairs_rows():
    out = console()
    before = [{"prompt": "p", "response": "old", "score": -0.5}]
    after = [{"prompt": "p", "response": "new", "score": 0.75}]
    show_comparison(before, after, console=out)
    (line,) = [line for line in text_of(out).splitlines() if "old" in line]
    assert line.index("old") < line.index("-0.500") < line.index("new") < line.index("0.750")
    with pytest.raises(ValueError):
        show_comparison(before, [], console=out)


def test_summary():
    out = console(width=30)
    rows = [{"objective/scores": k / 10, "objective/kl": float(k)} for k in range(10)]
    show_summary(rows, 3725.4, Path("runs/exp"), console=out)
    (line,) = text_of(out).splitlines()
    for word in ("score 0.200 -> 0.700", "kl 2.000 -> 7.000", "1:02:05", "runs/exp"):
        assert word in line


def test_duration():
    assert [duration(s) for s in (0, 59.6, 61, 3600, math.nan, math.inf)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "-",
        "-",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_on_a_full_disk_ends_nothing(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as device:
        full = io.TextIOWrapper(device, write_through=True)
        monkeypatch.setattr("sys.stderr", full)
        monkeypatch.setattr("sys.stdout", full)
        warn("something")
        for terminal in (False, True):
            out = Console(file=Output(), force_terminal=terminal)
            show_header({"a": 1}, console=out)
            with show_progress(2, console=out) as update:
                update(1, METRICS)
        with pytest.raises(OSError, match="No space"):
            full.write("what is not guarded")
