"""Tokenizers: lossless bytes, chat prompts, and the byte table against decoded text."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ppo_jax import smollm2
from ppo_jax.config import ModelConfig
from ppo_jax.errors import ConfigError, DataError
from ppo_jax.tokenizer import (
    SPECIAL,
    byte_tokenizer,
    decode,
    encode_prompt,
    load_tokenizer,
    token_bytes,
)

# Letters, digits, blanks, controls, accents, CJK, emoji with joiners, and anything at all.
ALPHABETS = [
    "abc XYZ 019 .,'!?\n\t",
    "éèüßñ ÀÇ\u0301\u200d\u00a0\u3000",
    "日本語 한국어 中文 עברית हिन्दी",
    "😀👩‍👩‍👧🏳️‍🌈 \x00\x01\x7f\ufeff\u2581Ġ",
]
# SmolLM2's vocabulary has no token for these bytes (controls, planes 4 to 11): it drops them.
SMOLLM2_LACKS = set(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")


def random_texts(count, seed=0):
    rng = random.Random(seed)
    for i in range(count):
        if i % 5 == 4:
            points = (rng.randrange(1, 0x110000) for _ in range(rng.randrange(30)))
            yield "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
        else:
            yield "".join(rng.choices(ALPHABETS[i % 5], k=rng.randrange(60)))


@pytest.fixture(scope="module", params=["byte", "smollm2"])
def tokenizer(request):
    if request.param == "byte":
        return byte_tokenizer()
    pytest.importorskip("gguf")
    return load_tokenizer(smollm2.ensure_cached())


def test_token_bytes_join_to_the_text(tokenizer):
    table, lengths = token_bytes(tokenizer, len(tokenizer) + 7)
    assert table.dtype == np.uint8 and lengths.dtype == np.int32
    lacking = SMOLLM2_LACKS if len(tokenizer) > 259 else set()
    for text in random_texts(1000):
        text = "".join(char for char in text if not lacking & set(char.encode()))
        ids = encode_prompt(tokenizer, text, where="here")
        assert b"".join(table[i, : lengths[i]].tobytes() for i in ids) == text.encode()
        assert decode(tokenizer, ids) == text


def test_token_bytes_join_to_decoded_random_ids(tokenizer):
    """Ids no encoder gives, specials among them: the table says what decoding shows."""
    table, lengths = token_bytes(tokenizer, len(tokenizer))
    rng = np.random.default_rng(1)
    for _ in range(300):
        ids = rng.integers(0, len(tokenizer), size=20)
        joined = b"".join(table[i, : lengths[i]].tobytes() for i in ids)
        assert joined.decode(errors="replace") == decode(tokenizer, ids)


def test_token_bytes_of_special_and_absent_ids(tokenizer):
    size = len(tokenizer) + 7
    table, lengths = token_bytes(tokenizer, size)
    assert table.shape[0] == size and lengths.max() == table.shape[1]
    assert not lengths[tokenizer.all_special_ids].any() and not lengths[-7:].any()
    empty = set(np.flatnonzero(lengths == 0)) - set(range(len(tokenizer), size))
    assert empty == {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    for row, length in zip(table, lengths, strict=True):
        assert not row[length:].any()
    few, few_lengths = token_bytes(tokenizer, 100)
    assert few.shape[0] == 100
    np.testing.assert_array_equal(few_lengths, lengths[:100])


def test_byte_tokenizer_ids_are_bytes(tmp_path):
    tokenizer = byte_tokenizer()
    text = "aé\u4e2d\U0001f600\x00\n"
    assert tokenizer.encode(text) == list(text.encode())
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert specials == (256, 257, 258)
    shape = ModelConfig()
    assert len(tokenizer) == shape.vocab_size
    assert tokenizer.eos_token_id in shape.eos_token_ids
    assert tokenizer.pad_token_id == shape.pad_token_id
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in random_texts(50, seed=2):
        assert again.encode(text) == list(text.encode())
    assert decode(again, [104, 257, 105, 258]) == "hi"


def test_decode_keeps_spaces():
    tokenizer = byte_tokenizer()
    assert decode(tokenizer, np.array(list(b" a , b 's ."))) == " a , b 's ."
    assert decode(tokenizer, []) == ""


def wrap(model, decoder):
    backend = Tokenizer(model)
    backend.decoder = decoder
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_sentencepiece_pieces():
    vocab = {"<unk>": 0, "<0x41>": 1, "<0xC3>": 2, "<0xA9>": 3, "\u2581the": 4, "x\u2581": 5}
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer = wrap(models.BPE(vocab, [], byte_fallback=True), decoders.Sequence(steps))
    table, lengths = token_bytes(tokenizer, 7)
    pieces = [table[i, : lengths[i]].tobytes() for i in range(7)]
    # A token that was added but is not special is shown by decoding, so it has bytes.
    assert pieces[1:] == [b"A", b"\xc3", b"\xa9", b" the", b"x ", b"<tool>"]
    assert decode(tokenizer, [5, 4, 2, 3, 1, 6]) == "x  theéA<tool>"


def test_unsupported_tokenizers():
    with pytest.raises(ConfigError, match="WordPiece.*ByteLevel"):
        token_bytes(wrap(models.WordPiece({"a": 0}, unk_token="a"), decoders.WordPiece()), 2)
    with pytest.raises(ConfigError, match="object has the decoder None"):
        token_bytes(object(), 2)


def test_load_tokenizer_faults(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer there.*tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_chat_prompts():
    tokenizer = byte_tokenizer()
    messages = [{"role": "user", "content": "Hi"}]
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"f\.jsonl:3: .*no chat template"):
        encode_prompt(tokenizer, messages, where="f.jsonl:3")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ids = encode_prompt(tokenizer, messages, where="f.jsonl:3")
    assert ids == list(b"[user]Hi[assistant]") and type(ids) is list
    with pytest.raises(DataError, match=r"f\.jsonl:4: .*no system"):
        encode_prompt(tokenizer, [{"role": "system", "content": ""}], where="f.jsonl:4")


def test_the_byte_tokenizer_writes_roles_out(tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße {{ x }}\n"},
        {"role": "assistant", "content": " <|eos|> "},
        {"role": "user", "content": ""},
    ]
    text = "system: Be brief.\nuser: Grüße {{ x }}\n\nassistant:  <|eos|> \nuser: \nassistant: "
    byte_tokenizer().save_pretrained(tmp_path)
    for tokenizer in (byte_tokenizer(), load_tokenizer(tmp_path)):
        ids = encode_prompt(tokenizer, messages, where="f.jsonl:3")
        assert ids == tokenizer.encode(text) and decode(tokenizer, ids) == text.replace(
            SPECIAL[1], ""
        )


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "NoneType"),
        (3, "int"),
        ([], "empty list"),
        ({"role": "user", "content": "x"}, "dict"),
        (["Hi"], "message 1 .*'role'"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "message 2 .*'content'"),
        ([{"role": 1, "content": "x"}], "message 1 .*'role'"),
    ],
)
def test_malformed_messages(prompt, words):
    with pytest.raises(DataError, match=f"f.jsonl:9: .*{words}"):
        encode_prompt(byte_tokenizer(), prompt, where="f.jsonl:9")
