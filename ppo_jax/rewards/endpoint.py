"""A reward behind an HTTP endpoint: a judge, a reward model or a sandbox that runs elsewhere.

Sent is a POST of JSON, the columns beside the two:

    {"prompts": [...], "responses": [...], "answer": [...]}  ->  {"scores": [0.5, ...]}

A score is a finite number a row, in the order of the rows; the rest of the reply is not looked at.
"""

import base64
import contextlib
import email.utils
import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple
from urllib.request import OpenerDirector

from ppo_jax.errors import ConfigError, DataError, RewardError
from ppo_jax.rewards.checks import is_number, need_number, need_whole
from ppo_jax.rewards.http_deadline import within
from ppo_jax.text import one_line, visible

MAX_BYTES_PER_ROW = 1 << 16  # of a reply, beside 1 MiB
MAX_SHOWN = 200  # characters of a refusal's text


class Target(NamedTuple):
    """Where requests go, and how long they may take."""

    url: str  # without credentials
    shown: str  # what messages call it: without query and fragment as well
    headers: dict[str, str]
    secrets: list[str]  # never shown, should a reply repeat them
    timeout: float  # seconds for one try
    retries: int
    backoff: float  # seconds before the first retry, doubled before each further one
    max_wait: float  # seconds before any retry


class _Again(Exception):
    """A try that failed in a way that may pass; `after`: seconds the server asks to wait."""

    def __init__(self, why: str, after: float | None = None):
        super().__init__(why)
        self.after = after


def endpoint(
    url: str,
    *,
    columns: Collection[str] | None = None,
    batch_size: int | None = None,
    timeout: float = 8.0,
    retries: int = 2,
    backoff: float = 0.5,
    max_wait: float = 15.0,
    headers: Mapping[str, str] | None = None,
    name: str = "endpoint",
) -> Callable[..., list[float]]:
    """Reward: the scores an HTTP endpoint gives, in requests of `batch_size` rows (None: one).

    `columns` names what is sent beside prompts and responses (None: all). A try, from looking up
    the host to the last byte of the reply, has `timeout` seconds; 429, 5xx, a lost connection and a
    try out of time are tried `retries` times more, after backoff * 2^k seconds, of which a random
    half is left out so that workers do not come back together, or what Retry-After asks for, if
    that is longer. Credentials in the URL are sent as basic authentication; redirects are not
    followed.

    All of it must fit into `reward.timeout`, or the reward's process is ended before it can name
    the URL. With the defaults, a server that hangs fails a request in 3 * 8 + 1.5 = 25.5 seconds,
    and one that asks to wait in 3 * 8 + 2 * 15 = 54 at most: within the default of 60, the former
    within the half of it that `reward.on_error=mask` leaves a batch.

    Raises ConfigError for unusable options. The reward raises RewardError, naming the URL without
    credentials, query and fragment, if the endpoint refuses, if retries are used up, if it asks to
    wait for more than `max_wait` seconds, and for a reply of another form.
    """
    size = need_whole(name, "batch_size", batch_size, 1) if batch_size is not None else None
    limits = (
        need_number(name, "timeout", timeout, 0.001),
        need_whole(name, "retries", retries, 0),
        need_number(name, "backoff", backoff, 0),
        need_number(name, "max_wait", max_wait, 0),
    )
    target = _target(name, url, headers or {}, limits)
    if isinstance(columns, str):
        raise ConfigError(f"reward {name}: columns is {columns!r}; expected a list of names")

    def endpoint(prompts: list, responses: list[str], **given: list) -> list[float]:
        for column in columns or ():
            if column not in given:
                present = ", ".join(sorted(given)) or "none"
                raise DataError(f"column {column!r} is not in the data (columns: {present})")
        sent = {key: given[key] for key in given if columns is None or key in columns}
        sent = {"prompts": prompts, "responses": responses} | sent
        scores, step = [], size or max(len(responses), 1)
        for first in range(0, len(responses), step):
            _ = responses[first]  # so that an error names this row
            some = {key: list(values[first : first + step]) for key, values in sent.items()}
            scores += _ask(target, some, len(some["responses"]))
        return scores

    endpoint.__name__ = name
    return endpoint


def _target(name: str, url: str, headers: Mapping[str, str], limits: tuple) -> Target:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except (ValueError, AttributeError, TypeError):
        host, port, parts = None, None, urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not _is_plain(url) or " " in url:
        # Not shown: it may hold credentials.
        raise ConfigError(f"reward {name}: the URL is no http:// or https:// URL in ASCII")
    for header, value in headers.items():
        if not (_is_plain(header) and _is_plain(value)):
            raise ConfigError(f"reward {name}: headers: {header!r} is no printable ASCII")
    own = {"Content-Type": "application/json", "Accept": "application/json"}
    secrets = [value for value in headers.values() if value]
    if parts.username is not None:
        pair = f"{parts.username}:{parts.password or ''}"
        basic = base64.b64encode(urllib.parse.unquote(pair).encode()).decode()
        own["Authorization"] = f"Basic {basic}"
        secrets += [basic, parts.password or parts.username]
    place = f"[{host}]" if ":" in host else host
    place += "" if port is None else f":{port}"
    bare = urllib.parse.urlunsplit((parts.scheme, place, parts.path, parts.query, ""))
    shown = urllib.parse.urlunsplit((parts.scheme, place, parts.path, "", ""))
    return Target(bare, shown, own | dict(headers), secrets, *limits)


def _is_plain(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _ask(target: Target, rows: dict[str, list], count: int) -> list[float]:
    """The scores of these rows, tried as often as may be."""
    try:
        body = json.dumps(rows, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"a column cannot be sent as JSON: {one_line(error)}") from None
    for tried in range(1, target.retries + 2):
        try:
            return _scores(target, _post(target, body, count), count)
        except _Again as error:
            times = "once" if tried == 1 else f"{tried} times"
            if tried > target.retries:
                raise _error(target, f"{error}; tried {times}") from None
            pause = min(target.backoff * 2 ** (tried - 1), target.max_wait)
            # A generator of its own: the one rewards draw from is seeded, alike for all workers.
            pause *= random.SystemRandom().uniform(0.5, 1)
            if error.after is not None and error.after > target.max_wait:
                asked = (
                    f"asks to wait {error.after:.0f} s, more than max_wait ({target.max_wait:g})"
                )
                raise _error(target, f"{error}; {asked}; tried {times}") from None
            time.sleep(max(pause, error.after or 0.0))
    raise AssertionError("the last try returns or raises")


def _post(target: Target, body: bytes, count: int) -> bytes:
    """The reply to one try. Raises RewardError if it is refused, `_Again` if it may yet succeed."""
    try:
        return within(target.timeout, lambda opener: _reply(target, body, count, opener))
    except TimeoutError:
        raise _Again(f"did not answer in {target.timeout:g} s") from None


def _reply(target: Target, body: bytes, count: int, opener: OpenerDirector) -> bytes:
    """What `_post` gives. Raises TimeoutError as well."""
    request = urllib.request.Request(target.url, body, target.headers, method="POST")
    try:
        with opener.open(request, timeout=target.timeout) as reply:
            return _read(target, reply, (1 << 20) + count * MAX_BYTES_PER_ROW)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 429 or error.code >= 500:
                wait = _seconds(error.headers.get("Retry-After"))
                raise _Again(f"answered {error.code}", wait) from None
            text = b""
            with contextlib.suppress(OSError, http.client.HTTPException):
                text = error.read(4 * MAX_SHOWN)
        said = _safe(target, text.decode("utf-8", "replace"))
        raise _error(target, f"answered {error.code}" + (f": {said}" if said else "")) from None
    except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise TimeoutError from None
        kind = type(reason).__name__
        raise _Again(f"no connection ({kind}: {_safe(target, str(reason))})") from None


def _read(target: Target, reply: Any, most: int) -> bytes:
    """The whole reply."""
    blocks, size = [], 0
    while block := reply.read1(1 << 16):
        blocks.append(block)
        size += len(block)
        if size > most:
            raise _error(target, f"answered more than {most} bytes")
    declared = reply.headers.get("Content-Length", "")
    if declared.isdigit() and size < int(declared):  # `read1` does not mind an early end
        raise http.client.IncompleteRead(b"", int(declared) - size)
    return b"".join(blocks)


def _scores(target: Target, reply: bytes, count: int) -> list[float]:
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        said = _safe(target, reply[: 4 * MAX_SHOWN].decode("utf-8", "replace"))
        raise _error(target, f"answered no JSON: {said!r}") from None
    scores = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(scores, list):
        raise _error(target, 'answered JSON without a list "scores"')
    if len(scores) != count:
        raise _error(target, f"answered {len(scores)} scores for {count} rows")
    for row, score in enumerate(scores):
        if not is_number(score) or abs(score) > 1e38:
            said = _safe(target, str(score)[:40])
            raise _error(target, f"answered {said!r} as scores[{row}]; expected a finite number")
    return [float(score) for score in scores]


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds from now, given as such or as a date; None if it is neither."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text)
        return max(then.timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _error(target: Target, what: str) -> RewardError:
    return RewardError(f"{target.shown} {what}")


def _safe(target: Target, text: str) -> str:
    """The beginning of a text in one visible line, without what must not be shown."""
    for secret in sorted(target.secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return visible(" ".join(text.split())[:MAX_SHOWN])
