"""Tokenizers: loading, the built-in byte tokenizer, prompts to ids, and the bytes of each id."""

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsInt

import numpy as np

from ppo_jax.errors import ConfigError, DataError
from ppo_jax.hf_folder import check_links

# Before transformers is imported anywhere: it would say in each process that there is no torch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")  # ids 256, 257, 258 of the byte tokenizer
# Of the byte tokenizer: a line a message, its role written out; the assistant's is left open.
CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
SPACE = "\u2581"  # SentencePiece's visible space


def has_tokenizer(path: str | Path) -> bool:
    return any((Path(path) / name).is_file() for name in FILES)


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False):
    """The transformers tokenizer in a model folder; never downloads, and runs Python that lies in
    the folder only where `trust_remote_code` says so.

    Raises ConfigError when the folder holds no tokenizer, a broken one, or a link out of it.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    check_links(folder)
    if not has_tokenizer(folder):
        raise ConfigError(f"{folder}: no tokenizer there (expected {FILES[0]} and {FILES[1]})")
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers and tokenizers raise bare Exception among others
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{folder}: the tokenizer cannot be loaded: {reason}") from error


def byte_tokenizer():
    """UTF-8 bytes as ids 0..255, then <|bos|>, <|eos|>, <|pad|>: the tokenizer of random models.

    Decoding gives back any valid UTF-8 text; no special token is added on encoding. Its chat
    template, `CHAT`, is plain text: a message can speak as another role.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(dict(byte_alphabet()), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=CHAT
    )


def character_tokenizer(characters: str):
    """One id a character, in this order, for ASCII characters, each once; no special tokens.

    Raises ConfigError for other characters. What is none of them has no id and is left out.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if not characters.isascii() or len(set(characters)) < len(characters):
        raise ConfigError(f"characters {characters!r}: must be ASCII, each once")
    stand_ins = {byte: piece for piece, byte in byte_alphabet().items()}
    vocabulary = {stand_ins[ord(character)]: i for i, character in enumerate(characters)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def encode_prompt(tokenizer, prompt: Any, *, where: str) -> list[int]:
    """Ids of a prompt: a string, or chat messages {role, content} through the chat template.

    A string gets the special tokens the tokenizer adds by default; messages end with the opening
    of the assistant's turn. `where` (file:line) stands in the DataError of an unusable prompt.
    """
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    _check_messages(prompt, where)
    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: prompt is a list of messages but the tokenizer has no chat template: "
            "give the prompt as a string"
        )
    try:
        return list(
            tokenizer.apply_chat_template(
                [dict(message) for message in prompt],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        )
    except ImportError as error:
        raise ConfigError(f"chat templates need the package jinja2: {error}") from None
    except Exception as error:  # whatever the template raises (jinja2) speaks of this prompt
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: the chat template refuses the messages: {reason}") from error


def check_vocabulary(ids: Iterable[int], vocab_size: int, where: str) -> None:
    """DataError, naming `where` (file:line), for an id that the model does not have."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise DataError(
                f"{where}: token id {token} is outside the model's vocabulary "
                f"(0 to {vocab_size - 1}); the tokenizer belongs to another model"
            )


def decode(tokenizer, ids: Iterable[SupportsInt]) -> str:
    """Text of the ids without special tokens, spaces left as they are."""
    return tokenizer.decode(
        [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def token_bytes(tokenizer, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The raw bytes each id adds to decoded text: bytes_VN uint8, zero-filled, lengths_V int32.

    Special tokens and ids beyond the tokenizer's vocabulary have length 0. Joined over a response
    they are the UTF-8 of its decoded text, but for what decoding alters at its borders: a broken
    character at either end becomes U+FFFD, and some SentencePiece decoders drop a leading space.
    Raises ConfigError for tokenizers that are neither byte-level BPE nor SentencePiece-like.
    """
    piece_bytes = _piece_reader(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    pieces = [b""] * vocab_size
    for piece, i in tokenizer.get_vocab().items():
        if i < vocab_size and i not in special:
            pieces[i] = piece.encode() if i in added else piece_bytes(piece)
    lengths_V = np.array([len(piece) for piece in pieces], np.int32)
    bytes_VN = np.zeros((vocab_size, max(1, lengths_V.max(initial=0))), np.uint8)
    for row, piece in zip(bytes_VN, pieces, strict=True):
        row[: len(piece)] = np.frombuffer(piece, np.uint8)
    return bytes_VN, lengths_V


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 for itself, the rest from U+0100
    on, in order (Radford et al. 2019, `bytes_to_unicode` in encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    return {alphabet[byte]: byte for byte in range(256)}


def _piece_reader(tokenizer):
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    steps = (decoder or {}).get("decoders", [decoder or {}])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level_piece
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentencepiece_piece
    found = ", ".join(sorted(map(str, kinds)))
    raise ConfigError(
        f"tokenizer {type(tokenizer).__name__} has the decoder {found}: the bytes of its "
        "tokens are known only for ByteLevel, ByteFallback and Metaspace"
    )


def _byte_level_piece(piece: str) -> bytes:
    alphabet = byte_alphabet()
    if all(char in alphabet for char in piece):
        return bytes(alphabet[char] for char in piece)
    return piece.encode()  # as the ByteLevel decoder does


def _sentencepiece_piece(piece: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def _check_messages(prompt: Any, where: str) -> None:
    if not isinstance(prompt, list | tuple) or not prompt:
        raise DataError(
            f"{where}: prompt is {type(prompt).__name__ if prompt != [] else 'an empty list'}, "
            "expected a string or a list of {role, content} messages"
        )
    for number, message in enumerate(prompt, 1):
        for key in ("role", "content"):
            value = message.get(key) if isinstance(message, Mapping) else None
            if not isinstance(value, str):
                raise DataError(f"{where}: message {number} of prompt needs a string {key!r}")
