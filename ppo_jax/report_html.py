"""Pages that hold all they show: no script, nothing from elsewhere, text of others escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppo_jax.metrics import first_and_last
from ppo_jax.report_tables import METHOD, Result, facts_of, left_out, tables_of
from ppo_jax.text import visible

# What a browser may load for the page: nothing but its own styles.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: 0.2em 0.8em 0.2em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #888; }
td.text { overflow-wrap: anywhere; white-space: pre-wrap; }
pre { background: #f5f5f5; overflow-x: auto; padding: 0.8em; white-space: pre-wrap; }
svg { height: auto; max-width: 100%; }
.tokens { font: 14px/2 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.tokens span { border-radius: 3px; padding: 0.15em 0; }
.key span { display: inline-block; padding: 0 0.6em; }
"""
FIRST_LAST = 5  # rows whose mean stands for the start and the end of a run
SHOWN = 8  # samples of a run


def escape(text: str, *, lines: bool = False) -> str:
    """Text of others for a page: what is markup, controls or hides is escaped; `lines` keeps its
    line ends."""
    if lines:
        return "\n".join(escape(line) for line in text.split("\n"))
    return html.escape(visible(text))


def page(title: str, body: Iterable[str]) -> str:
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    parts = ["<!doctype html>", '<html lang="en">', *head, f"<h1>{escape(title)}</h1>", *body]
    return "\n".join([*parts, "</html>"]) + "\n"


def table(names: Sequence[str], rows: Iterable[Sequence[str]], *, text: bool = False) -> str:
    """Plain text as a table; `text`: cells that may be long, with line ends of their own."""
    mark = '<td class="text">' if text else "<td>"
    line = lambda cells, start, end: f"<tr>{''.join(f'{start}{c}{end}' for c in cells)}</tr>"
    body = [line([escape(c, lines=text) for c in row], mark, "</td>") for row in rows]
    head = [line(map(escape, names), "<th>", "</th>")] if any(names) else []
    return "\n".join(["<table>", *head, *body, "</table>"])


def study_page(result: Result, plots: Mapping[str, str], commands: Mapping[str, str]) -> str:
    """Everything of a study: tables, plots, what was left out, and where it comes from."""
    study, body = result.study, []
    if study.doc:
        body.append(f"<pre>{escape(study.doc, lines=True)}</pre>")
    for metric in study.metrics:
        body.append(f"<h2>{escape(metric)}: {escape(result.rule(metric))}</h2>")
        body += [table(names, rows) for names, rows in tables_of(result, metric)]
    missing = "".join(f"<li>{escape(line)}</li>" for line in left_out(result) or ["nothing"])
    body += ["<h2>Left out</h2>", f"<ul>{missing}</ul>"]
    body.append(f"<p>Differences are to {escape(result.base)}, {escape(result.base_is)}. ")
    body.append(f"{escape(METHOD)}</p>")
    body += [f"<h2>{escape(name.removesuffix('.svg'))}</h2>\n{svg}" for name, svg in plots.items()]
    facts = {name: "; ".join(values) for name, values in facts_of(study).items()}
    body += ["<h2>Runs</h2>", table(["", ""], list({**facts, **commands}.items()))]
    return page(study.name, body)


def run_page(
    title: str,
    *,
    facts: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    plots: str | None,
    samples: Sequence[Mapping[str, Any]],
    tokens: Sequence[str] = (),
) -> str:
    """A run: how it stands, its plots, every metric at the start and the end, samples; `tokens` are
    the views of `report_tokens`."""
    body = [table(["", ""], list(facts.items()))]
    if plots is not None:
        body.append(plots)
    if tokens:
        body += ["<h2>Token by token</h2>", *tokens]
    if samples:
        last = samples[-SHOWN:]
        step = last[-1]["step"]
        body.append(f"<h2>Samples, up to iteration {step}</h2>")
        columns = ("step", "prompt", "response", "score", "tokens", "ended")
        shown = [[_said(row.get(name, "")) for name in columns] for row in last]
        body.append(table(columns, shown, text=True))
    names = dict.fromkeys(name for row in rows for name in row)
    names.pop("step", None)
    ends = [[name, *_first_and_last(rows, name)] for name in names]
    body.append("<h2>Metrics</h2>")
    columns = ["", f"first {FIRST_LAST}, mean", f"last {FIRST_LAST}, mean", "rows"]
    body.append(table(columns, ends))
    return page(title, body)


def token_views(rows: Sequence[Any], units: Mapping[str, str]) -> list[str]:
    """The rows of `report_tokens`, each number as the colour behind its token: orange above 0, blue
    below, white at 0, at full strength the largest of all rows."""
    views = []
    largest = {
        name: max(float(abs(row.numbers[name]).max()) for row in rows if name in row.numbers)
        for name in units
        if any(name in row.numbers for row in rows)
    }
    for name, top in largest.items():
        ends = "".join(_shaded(f"{x:+.3g}", x, top) for x in (-top, -top / 2, 0.0, top / 2, top))
        views.append(f'<p class="key">{escape(name)} ({escape(units[name])}): {ends}</p>')
    for row in rows:
        sample, count = row.sample, len(row.ids)
        facts = f"iteration {sample['step']}, score {_said(sample.get('score'))}, {count} tokens"
        if sample.get("tokens") != count:
            facts += f" of its text, {_said(sample.get('tokens'))} as it was sampled"
        views.append(f"<h3>{escape(facts)}</h3>")
        views.append(f"<pre>{escape(_said(sample.get('prompt')), lines=True)}</pre>")
        for name, numbers_T in row.numbers.items():
            told = zip(row.tokens, map(float, numbers_T), strict=True)
            spans = "".join(_shaded(text, x, largest[name]) for text, x in told)
            views.append(f'<p>{escape(name)}</p><div class="tokens">{spans}</div>')
    return views


def _shaded(text: str, x: float, top: float) -> str:
    """Text over the colour of a number between -top and top."""
    share = min(abs(x) / top, 1.0) if top > 0 else 0.0
    full = (230, 159, 0) if x > 0 else (86, 180, 233)  # Okabe and Ito's orange and sky blue
    colour = ",".join(str(round(255 - share * (255 - part))) for part in full)
    return f'<span style="background:rgb({colour})" title="{x:.4g}">{escape(text)}</span>'


def _first_and_last(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str, str]:
    found = [{name: row[name]} for row in rows if isinstance(row.get(name), int | float)]
    first, last = first_and_last(found, name, FIRST_LAST)
    return f"{first:.5g}", f"{last:.5g}", str(len(found))


def _said(value: Any) -> str:
    """A value of a sample's row: a chat as its messages, a number with four digits."""
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
