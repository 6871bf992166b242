"""A reward over HTTP, against a server on this machine that fails in every way."""

import base64
import contextlib
import email.utils
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ppo_jax.errors import ConfigError, DataError, RewardError
from ppo_jax.rewards import endpoint as module
from ppo_jax.rewards.base import parse_rewards
from ppo_jax.rewards.endpoint import endpoint
from ppo_jax.rewards.host import Rows, call

PATH = "/score"


class Server(ThreadingHTTPServer):
    """Answers each request by the next of `replies`, the last one again and again."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.seen, self.over = [lengths], [], threading.Event()
        self.place = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.place}{PATH}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seen, replies = self.server.seen, self.server.replies
        seen.append((self.path, dict(self.headers), json.loads(body)))
        with contextlib.suppress(OSError):  # who asked has gone
            replies[min(len(seen), len(replies)) - 1](self, json.loads(body))

    def do_GET(self):
        raise AssertionError("a redirect was followed")

    def log_message(self, *_):
        pass

    def answer(self, body, code=200, **headers):
        self.send_response(code)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)


def lengths(handler, body):
    handler.answer(json.dumps({"scores": [len(r) / 2 for r in body["responses"]]}).encode())


def says(text, code=200, **headers):
    return lambda handler, body: handler.answer(text.encode(), code, **headers)


def hangs(handler, body):
    handler.server.over.wait(20)


def drips(handler, body):
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")


def hangs_up(handler, body):
    handler.connection.close()


def cut_short(handler, body):
    handler.answer(b'{"scores": [1', **{"Content-Length": 100})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.over.set()
        running.shutdown()


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def score(server, responses=("a", "bbb"), url=None, columns=None, **options):
    reward = endpoint(url or server.url, **{"timeout": 5.0, "backoff": 0.01} | options)
    return reward(["p"] * len(responses), list(responses), **columns or {})


def test_rows_go_out_and_scores_come_back(server):
    assert score(server, columns={"answer": [1, {"x": "é"}]}) == [0.5, 1.5]
    ((path, headers, body),) = server.seen
    assert (path, headers["Content-Type"]) == (PATH, "application/json")
    assert body == {"prompts": ["p"] * 2, "responses": ["a", "bbb"], "answer": [1, {"x": "é"}]}
    assert score(server, responses=()) == []
    assert len(server.seen) == 1


def test_batches_and_columns(server):
    responses = ["x" * n for n in range(7)]
    columns = {"answer": list(range(7)), "other": [0] * 7}
    reward = endpoint(server.url, columns=["answer"], batch_size=3)
    scores = reward(["p"] * 7, responses, **columns)
    assert scores == [n / 2 for n in range(7)]
    assert [body["answer"] for *_, body in server.seen] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all("other" not in body for *_, body in server.seen)
    with pytest.raises(DataError, match=r"column 'answer' is not in the data \(columns: other\)"):
        reward(["p"], ["x"], other=[1])
    with pytest.raises(DataError, match="cannot be sent as JSON"):
        reward(["p"], ["x"], answer=[float("nan")])


@pytest.mark.parametrize(
    "fails", [says("", 429), says("", 500), says("", 503), hangs_up, cut_short]
)
def test_it_fails_twice_and_then_answers(server, pauses, fails):
    server.replies = [fails, fails, lengths]
    assert score(server, backoff=0.5) == [0.5, 1.5]
    assert len(server.seen) == 3
    # Twice as long each time, of which a random half may be left out.
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1 and len(pauses) == 2


def test_retry_after_is_honoured(server, pauses):
    soon = email.utils.formatdate(time.time() + 20, usegmt=True)
    asks = [says("", 429, Retry_After=value) for value in ("7", soon, "nonsense", "0", "-3")]
    server.replies = [*asks, lengths]
    assert score(server, retries=5, max_wait=30) == [0.5, 1.5]
    assert pauses[0] == 7 and 15 < pauses[1] <= 20 and max(pauses[2:]) < 1
    server.replies = [says("", 503, Retry_After="3600")]
    server.seen.clear()
    with pytest.raises(RewardError, match=r"503; asks to wait 3600 s, more than max_wait \(15\)"):
        score(server)
    assert len(server.seen) == 1


def test_backoff_is_bounded(server, pauses):
    server.replies = [says("", 500)]
    with pytest.raises(RewardError, match="answered 500; tried 9 times"):
        score(server, retries=8, backoff=1, max_wait=4)
    assert all(2 <= pause <= 4 for pause in pauses[2:]) and len(pauses) == 8
    with pytest.raises(RewardError, match="answered 500; tried once"):
        score(server, retries=0)


@pytest.mark.parametrize("slow", [hangs, drips])
def test_it_hangs(server, slow):
    server.replies = [slow]
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"did not answer in 0.2 s; tried 2 times"):
        score(server, timeout=0.2, retries=1)
    assert time.monotonic() - start < 5
    server.replies = [slow, slow, slow, lengths]
    assert score(server, timeout=0.2 if slow is hangs else 1.0, retries=1) == [0.5, 1.5]


def test_nobody_is_there(server, pauses):
    with Server() as gone:
        pass
    with pytest.raises(
        RewardError, match=r"/score no connection \(ConnectionRefused.*tried 3 times"
    ):
        score(server, url=gone.url, retries=2)


GARBAGE = {
    "<html>\x1b[31m oops": r"answered no JSON: '<html>\\+x1b\[31m oops'",
    "": "answered no JSON: ''",
    "[" * 10**5: "answered no JSON",
    "[1, 2]": 'answered JSON without a list "scores"',
    '{"score": [1, 2]}': 'answered JSON without a list "scores"',
    '{"scores": 1}': 'answered JSON without a list "scores"',
    '{"scores": [1]}': "answered 1 scores for 2 rows",
    '{"scores": [1, 2, 3]}': "answered 3 scores for 2 rows",
    '{"scores": [1, NaN]}': r"answered 'nan' as scores\[1\]; expected a finite number",
    '{"scores": [1, 1e999]}': r"answered 'inf' as scores\[1\]",
    '{"scores": [null, 1]}': r"answered 'None' as scores\[0\]",
    '{"scores": ["1", 1]}': r"answered '1' as scores\[0\]",
    '{"scores": [true, 1]}': r"answered 'True' as scores\[0\]",
    '{"scores": [1, 1' + "0" * 400 + "]}": r"answered '1000.*as scores\[1\]",
    "\0" * (3 << 20): "answered more than 1179648 bytes",
}


@pytest.mark.parametrize("reply", GARBAGE, ids=lambda text: ascii(text[:20]))
def test_garbage_is_not_tried_again(server, reply):
    server.replies = [says(reply)]
    with pytest.raises(RewardError, match=GARBAGE[reply]) as raised:
        score(server)
    assert str(raised.value).startswith(f"{server.url} answered")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert len(server.seen) == 1


def test_refusals_say_what_the_server_says(server):
    server.replies = [says("no field\n`answer`", 422)]
    with pytest.raises(RewardError, match="answered 422: no field `answer`$"):
        score(server)
    server.replies = [says("", 302, Location="/elsewhere")]
    with pytest.raises(RewardError, match="answered 302$"):
        score(server)
    assert len(server.seen) == 2


def test_credentials_are_sent_and_never_shown(server):
    url = f"http://me:pa%3Ass@{server.place}{PATH}?key=hidden#part"
    assert score(server, url=url, headers={"X-Token": "topsecret"}) == [0.5, 1.5]
    path, headers, _ = server.seen[0]
    basic = base64.b64encode(b"me:pa:ss").decode()
    assert (path, headers["Authorization"]) == (f"{PATH}?key=hidden", f"Basic {basic}")
    assert headers["X-Token"] == "topsecret"
    for reply in (says(f"topsecret {basic}", 401), says(f"topsecret {basic}"), says("", 500)):
        server.replies = [reply]
        with pytest.raises(RewardError) as raised:
            score(server, url=url, headers={"X-Token": "topsecret"}, retries=0)
        assert str(raised.value).startswith(f"{server.url} answered")
        assert not [
            s for s in ("me:", "pa%3Ass", "hidden", "topsecret", basic) if s in str(raised.value)
        ]


def test_as_a_reward_of_an_experiment(server):
    (part,) = parse_rewards(endpoint(server.url, batch_size=1, retries=0, name="judge"))
    rows = Rows([4, 5], ["p", "q"], ["a", "bbb"], {"answer": [1, 2]})
    assert call(part, rows).scores["judge"].tolist() == [0.5, 1.5]
    server.replies = [lengths, says('{"scores": [null]}')]
    server.seen.clear()
    with pytest.raises(RewardError, match=r"reward judge raised on row 5 \(prompt 'q'\)"):
        call(part, rows)


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "host/x", "http://", "http://h:x/", "http://h/é", "http://h/a b", None, 3],
)
def test_unusable_urls(url):
    with pytest.raises(ConfigError, match="reward endpoint: the URL is no http:// or https:// URL"):
        endpoint(url)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": 1.5}, {"timeout": 0}, {"timeout": float("inf")}]
    + [{"retries": -1}, {"backoff": "1"}, {"max_wait": -1}, {"columns": "answer"}]
    + [{"headers": {"X": "a\nb"}}, {"headers": {"X": 3}}],
    ids=str,
)
def test_unusable_options(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"reward endpoint: {name}(:.*)? is "):
        endpoint("http://127.0.0.1", **options)
