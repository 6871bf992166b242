"""Prompt files: what is read from them, and every fault in one line."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ppo_jax.columns import numeric_column
from ppo_jax.config import Config, DataOptions, replace
from ppo_jax.data import (
    batch_prompts,
    fixed_prompts,
    load_dataset,
    make_batch,
    prompt_width,
)
from ppo_jax.errors import DataError
from ppo_jax.tokenizer import byte_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PAD = 258
TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = None
CHAT = byte_tokenizer()
CHAT.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, tokenizer=TOKENIZER, vocab_size=259, **options):
    return load_dataset(DataOptions(path=str(path), **options), tokenizer, vocab_size=vocab_size)


def fault(path, **options):
    with pytest.raises(DataError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rows_columns_and_line_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "one", "k": 1}\r\n\n  \n{"k": 2, "prompt": "tw\xc3\xb6"}\n'
        b'{"prompt": "one", "k": null}'
    )
    data = load(path)
    assert data.prompts == ["one", "twö", "one"]
    assert data.prompt_ids == [list(b"one"), list("twö".encode()), list(b"one")]
    assert data.columns == {"k": [1, 2, None]}
    assert data.numeric == {}
    assert data.lines == [1, 4, 5]
    assert (data.dropped, data.truncated, data.path) == (0, 0, str(path))
    assert prompt_width(data) == 4


def test_gzip_reads_the_same(tmp_path):
    rows = [{"prompt": f"p{i}", "n": i} for i in range(20)]
    plain = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert str(load(plain)._replace(path="")) == str(load(packed)._replace(path=""))


GOOD = b'{"prompt": "fine", "n": 1}\n'
FAULTS = [
    (b'{"prompt": "a", "n": 1\n', "not JSON: .* at column"),
    (b"[" * 100_000 + b"\n", "lists or objects are nested too deeply$"),
    (b'{"text": "a", "n": 1}\n', "no column `prompt`; columns present: 'text, n'$"),
    (b"{}\n", "no column `prompt`; columns present: none$"),
    (b'{"prompt": 7, "n": 1}\n', "prompt is a number; expected a string or a list of messages$"),
    (b'{"prompt": null, "n": 1}\n', "prompt is null; expected"),
    (b'{"prompt": true, "n": 1}\n', "prompt is a boolean; expected"),
    (b'{"prompt": {"role": "user"}, "n": 1}\n', "prompt is an object; expected"),
    (b'{"prompt": "", "n": 1}\n', "prompt is empty$"),
    (b'{"prompt": [], "n": 1}\n', "prompt is empty$"),
    (b'{"prompt": ["hi"], "n": 1}\n', "message 1 of prompt needs a string 'role'$"),
    (b'{"prompt": [{"role": "user"}], "n": 1}\n', "message 1 of prompt needs a string 'content'$"),
    (b'{"prompt": [{"role": 1, "content": ""}], "n": 1}\n', "1 of prompt needs a string 'role'$"),
    (b'{"prompt": [{"role": "user", "content": "a"}], "n": 1}\n', "has no chat template"),
    (b'{"prompt": "\\ud800", "n": 1}\n', "column 'prompt' holds half of a surrogate pair"),
    (b'{"prompt": "caf\xe9", "n": 1}\n', "not UTF-8: byte 0xe9 at position 16$"),
    (b'{"prompt": "a"}\n', "no column 'n', which line 1 has$"),
    (b'{"prompt": "a", "n": 1, "m": 2}\n', "column 'm', which line 1 does not have$"),
    (b'{"prompt": "a", "n": 1, "responses": 2}\n', "column 'responses' is a reward's own argument"),
    (b'{"\\u001b[2J\\n": 1}\n', r"columns present: '\\x1b\[2J\\n'$"),
]


@pytest.mark.parametrize(("line", "reason"), FAULTS, ids=[reason[:30] for _, reason in FAULTS])
def test_faulty_line_is_named(tmp_path, line, reason):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + line + GOOD)
    message = fault(path)
    assert message.startswith(f"{path}:3: ")
    assert re.search(reason, message), message


@pytest.mark.parametrize(("line", "reason"), FAULTS, ids=[reason[:30] for _, reason in FAULTS])
def test_faulty_line_is_left_out_by_choice(tmp_path, capsys, line, reason):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD + line)
    data = load(path, bad_rows="skip")
    assert (data.skipped, data.lines, data.columns) == (2, [1, 4], {"n": [1, 1]})
    warning = capsys.readouterr().err
    assert warning.startswith(f"ppo-jax: warning: rows left out: 2, the first {path}:2: ")
    assert re.search(reason, warning, re.MULTILINE) and warning.count("\n") == 1


def test_the_first_usable_row_sets_the_columns(tmp_path, capsys):
    rows = [
        {"prompt": "a", "responses": "b"},
        {"prompt": "", "n": 0},
        {"prompt": "abc", "n": 1},
        {"prompt": "b"},
    ]
    path = write(tmp_path / "a.jsonl", [*rows, {"prompt": "d", "n": 2}])
    assert fault(path) == f"{path}:1: column 'responses' is a reward's own argument; rename it"
    data = load(path, bad_rows="skip", max_prompt_tokens=2, overlong="drop")
    assert (data.columns, data.lines, data.dropped, data.skipped) == ({"n": [2]}, [5], 1, 3)
    load(write(tmp_path / "b.jsonl", [{"prompt": "a"}]), bad_rows="skip")
    assert capsys.readouterr().err.count("warning") == 1


def test_what_is_not_a_row_s_own_fault_stays_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "A"}, {"prompt": "zz"}])
    assert f"{path}:2: token id 122 is outside" in fault(path, bad_rows="skip", vocab_size=122)
    assert f"{path}:2: prompt has 2 tokens" in fault(path, bad_rows="skip", max_prompt_tokens=1)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(path.read_bytes())[:-9])
    assert re.search(r"cut\.jsonl\.gz:\d+: cannot be read: ", fault(cut, bad_rows="skip"))


def test_nothing_usable_at_all(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": ""}, ["prompt"], {"text": "a"}])
    assert fault(path, bad_rows="skip") == (
        f"{path}:1: prompt is empty; with all 3 rows left out (data.bad_rows) none remains"
    )


UNUSUAL = {" \t\n": [32, 9, 10], "<|eos|>": [257], "<|pad|><|bos|>": [258, 256], "a": [97]}
UNUSUAL |= {"\0": [0], "a\0\ufeff": [97, 0, 0xEF, 0xBB, 0xBF], "abcdef": list(b"abcdef")}


@pytest.mark.parametrize(("prompt", "ids"), UNUSUAL.items())
def test_unusual_prompts_are_prompts(tmp_path, prompt, ids):
    """Also as the only row of the file, in a batch of more, and at exactly the longest length."""
    data = load(write(tmp_path / "a.jsonl", [{"prompt": prompt}]), max_prompt_tokens=6)
    assert (data.prompt_ids, data.truncated) == ([ids], 0)
    config = replace(Config(), **{"rollout.batch_size": 3})
    batch = make_batch(data, config, 0, pad_id=PAD)
    assert batch.ids_BP.tolist() == [ids] * 3 and batch.mask_BP.all()
    assert batch_prompts(data, batch) == [prompt] * 3
    assert TOKENIZER.decode(batch.ids_BP[0], clean_up_tokenization_spaces=False) == prompt


def test_tokens_outside_the_vocabulary(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "AAA"}, {"prompt": "AzA"}])
    assert len(load(path, vocab_size=123).prompts) == 2
    message = fault(path, vocab_size=122)
    assert message.startswith(
        f"{path}:2: token id 122 is outside the model's vocabulary (0 to 121)"
    )


@pytest.mark.parametrize(("ids", "reason"), [([], "no tokens"), ([3, -1], "token id -1 is outs")])
def test_tokenizer_gives_nothing_usable(tmp_path, ids, reason):
    class Stub:
        def encode(self, text):
            return ids

    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    message = fault(path, tokenizer=Stub())
    assert message.startswith(f"{path}:1: ") and reason in message


def test_overlong(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [{"prompt": p, "n": i} for i, p in enumerate(["abc", "abcdef", "abcd", "uvwxyz"])],
    )
    assert fault(path, max_prompt_tokens=4) == (
        f"{path}:2: prompt has 6 tokens, data.max_prompt_tokens is 4; raise it to 6, "
        "or set data.overlong to 'drop' or 'truncate'"
    )
    dropped = load(path, max_prompt_tokens=4, overlong="drop")
    assert (dropped.prompts, dropped.columns) == (["abc", "abcd"], {"n": [0, 2]})
    assert (dropped.dropped, dropped.truncated, dropped.lines) == (2, 0, [1, 3])
    cut = load(path, max_prompt_tokens=4, overlong="truncate")
    assert cut.prompt_ids == [list(b"abc"), list(b"cdef"), list(b"abcd"), list(b"wxyz")]
    assert cut.prompts[1] == "abcdef"
    assert (cut.dropped, cut.truncated, cut.lines) == (0, 2, [1, 2, 3, 4])
    assert load(path, max_prompt_tokens=6).truncated == 0
    assert load(path, max_prompt_tokens=5, overlong="truncate").prompt_ids[1] == list(b"bcdef")
    message = fault(path, max_prompt_tokens=2, overlong="drop")
    assert message.startswith(f"{path}: all 4 prompts are longer than data.max_prompt_tokens = 2")


def test_empty_file(tmp_path):
    for content in ("", "\n  \n"):
        path = tmp_path / "a.jsonl"
        path.write_text(content)
        assert fault(path).startswith(f"{path}: no rows")


def test_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": "a"}])
    write(tmp_path / "other.jsonl", [{"prompt": "a"}])
    missing = tmp_path / "trian.jsonl"
    assert fault(missing) == (
        f"data.path: no file {str(missing)!r}; nearest: {tmp_path / 'train.jsonl'}"
    )
    (tmp_path / "empty").mkdir()
    assert fault(tmp_path / "empty" / "a.jsonl").endswith("no .jsonl file in that folder")
    assert fault(tmp_path / "none" / "a.jsonl").endswith(f"no folder {tmp_path / 'none'}")
    near = fault("experiments/data/openigs.jsonl")
    assert near.endswith("experiments/data/openings.jsonl")


def test_paths_that_are_no_data_file(tmp_path):
    assert "is a folder; expected a .jsonl or .jsonl.gz file" in fault(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    assert "a.txt' does not end in .jsonl or .jsonl.gz" in fault(tmp_path / "a.txt")


def test_relative_path_working_directory_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "experiments/data/tiny.jsonl"
    assert load(name).path == str(ROOT / name)
    (tmp_path / "experiments/data").mkdir(parents=True)
    write(tmp_path / name, [{"prompt": "mine"}])
    assert load(name).prompts == ["mine"]


def test_chat_messages(tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    data = load(write(tmp_path / "a.jsonl", [{"prompt": messages}]), tokenizer=CHAT)
    assert bytes(data.prompt_ids[0]) == b"[user]hi[assistant]yo"
    prompts = fixed_prompts(data, 1, pad_id=PAD, width=30)
    assert batch_prompts(data, prompts) == [messages]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, -2, 2**31 - 1], np.int32),
        ([True, False], np.int32),
        ([True, 3], np.int32),
        ([1, 0.5], np.float32),
        ([1.0, 2.0], np.float32),
        ([1, None], None),
        ([1, "2"], None),
        (["a"], None),
        ([[1]], None),
        ([2**31], None),
        ([-(2**31) - 1], None),
        ([1e39, 1.0], None),
        ([float("inf")], None),
    ],
)
def test_numeric_column(values, dtype):
    array = numeric_column(values)
    if dtype is None:
        assert array is None
    else:
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, np.array(values, np.float64).astype(dtype))


def test_openings_file():
    data = load("experiments/data/openings.jsonl", max_prompt_tokens=100)
    assert len(data.prompts) >= 300
    assert len({prompt.lower() for prompt in data.prompts}) == len(data.prompts)
    assert set(data.columns) == {"topic"} and len(set(data.columns["topic"])) >= 15
    for prompt in data.prompts:
        assert prompt.isascii() and prompt == prompt.strip() and prompt[-1].isalnum(), prompt
        assert 2 <= len(prompt.split()) <= 14, prompt


def test_openings_are_neutral():
    vader = pytest.importorskip("vaderSentiment.vaderSentiment")
    lexicon = vader.SentimentIntensityAnalyzer().lexicon
    for prompt in load("experiments/data/openings.jsonl", max_prompt_tokens=100).prompts:
        words = [word.strip(".,-'") for word in prompt.lower().split()]
        words += re.findall(r"[a-z']+", prompt.lower())
        assert not [word for word in words if word in lexicon], prompt


def test_tiny_file():
    data = load("experiments/data/tiny.jsonl")
    assert len(set(data.prompts)) == len(data.prompts) == 32
    assert all(prompt.isascii() for prompt in data.prompts) and prompt_width(data) <= 12
