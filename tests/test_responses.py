"""Given responses: conversations, those too long or of no use, and what they end with."""

import json
from pathlib import Path

import pytest

from ppo_jax.config import Config, replace
from ppo_jax.data import load_dataset
from ppo_jax.errors import DataError
from ppo_jax.responses import end_token, ended, response_ids
from ppo_jax.tokenizer import byte_tokenizer

RUN = Config()


def write(folder: Path, name: str, rows: list[dict]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_conversations_are_prompts_with_their_last_message_as_the_response(tmp_path):
    tokenizer = byte_tokenizer()
    rows = [{"prompt": "a", "response": "long one"}, {"prompt": "b", "response": "x"}]
    options = replace(RUN, **{"data.path": write(tmp_path, "d.jsonl", rows)}).data
    dataset = load_dataset(options, tokenizer, vocab_size=259)
    ids = response_ids(dataset, tokenizer, 259)
    cut = ended(dataset, ids, replace(RUN, **{"data.overlong": "truncate"}).data, eos=257, room=3)
    assert cut.response_ids == [list(b"lon"), [*b"x", 257]] and cut.truncated == 1
    drop = ended(dataset, ids, replace(RUN, **{"data.overlong": "drop"}).data, eos=257, room=3)
    assert drop.response_ids == [[*b"x", 257]] and drop.prompts == ["b"] and drop.dropped == 1
    say = lambda *texts: [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)
    ]
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    path = write(tmp_path, "chat.jsonl", [{"messages": say("hi", "ho", "more", "end")}])
    chat = load_dataset(replace(RUN, **{"data.path": path}).data, tokenizer, vocab_size=259)
    assert bytes(chat.prompt_ids[0]) == b"[hi][ho][more]>" and chat.columns == {"response": ["end"]}
    path = write(tmp_path, "bad.jsonl", [{"messages": say("hi", "ho", "more")}])
    with pytest.raises(DataError, match="bad.jsonl:1: messages: expected a list of two or more"):
        load_dataset(replace(RUN, **{"data.path": path}).data, tokenizer, vocab_size=259)


def test_rows_whose_response_cannot_be_used_are_left_out_on_demand(tmp_path, capsys):
    rows = [{"prompt": "a", "response": x} for x in ("ok", None, "", "fine")]
    options = replace(RUN, **{"data.path": write(tmp_path, "d.jsonl", rows)}).data
    dataset = load_dataset(options, byte_tokenizer(), vocab_size=259)
    with pytest.raises(DataError, match="d.jsonl:2: response is null; expected a string, or"):
        response_ids(dataset, byte_tokenizer(), 259)
    ids = response_ids(dataset, byte_tokenizer(), 259, bad_rows="skip")
    left = ended(dataset, ids, options, eos=257, room=9)
    assert left.response_ids == [[*b"ok", 257], [*b"fine", 257]]
    assert (left.skipped, left.dropped, left.lines) == (2, 0, [1, 4])
    assert "rows left out: 2, the first " in capsys.readouterr().err


def read(folder, *rows):
    options = replace(RUN, **{"data.path": write(folder, "d.jsonl", list(rows))}).data
    return load_dataset(options, byte_tokenizer(), vocab_size=259)


def test_a_response_may_be_the_one_message_of_the_assistant(tmp_path):
    said = {"role": "assistant", "content": "ho"}
    rows = [{"prompt": "a", "response": x} for x in ([said], "ho", [said | {"name": "bot"}])]
    assert response_ids(read(tmp_path, *rows), byte_tokenizer(), 259) == [list(b"ho")] * 3
    asked = {"role": "user", "content": "hi"}
    for given in ([asked, said], [asked], [], [said, said], [said | {"content": None}], said):
        what = "an object" if given is said else "a list"
        expected = f"d.jsonl:1: response is {what}; expected a string, or a list of one message of"
        with pytest.raises(DataError, match=expected):
            response_ids(read(tmp_path, {"prompt": "a", "response": given}), byte_tokenizer(), 259)


def test_columns_of_other_trainers_are_told_what_they_are_here(tmp_path):
    with pytest.raises(DataError, match=r"'prompt, text'\)$"):
        response_ids(read(tmp_path, {"prompt": "a", "text": "b"}), byte_tokenizer(), 259)
    for names in (["completion"], ["chosen", "rejected"]):
        row = {"prompt": "a"} | dict.fromkeys(names, "b")
        says = f"no column `response` .*; nearest: `{names[0]}`, which is to be named `response`"
        with pytest.raises(DataError, match=says):
            response_ids(read(tmp_path, row), byte_tokenizer(), 259)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    with pytest.raises(DataError, match="no column `prompt`.*the messages that both begin with"):
        read(tmp_path, {"chosen": talk, "rejected": talk})


def test_messages_leave_no_room_for_a_response(tmp_path):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    with pytest.raises(DataError, match="d.jsonl:1: columns `messages` and `response`: the last"):
        read(tmp_path, {"messages": talk, "response": "other"})


def test_a_response_ends_with_what_the_tokenizer_means():
    tokenizer = byte_tokenizer()  # whose EOS is 257
    assert end_token(tokenizer, (5, 257, 6)) == 257
    assert end_token(tokenizer, (5, 6)) == 5 and end_token(tokenizer, ()) is None
