"""Rewards on the device for how a response ends."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ppo_jax.errors import ConfigError
from ppo_jax.rewards.base import DeviceReward
from ppo_jax.rewards.byte_stream import ByteTables, byte_stream, byte_tables, bytes_at
from ppo_jax.types import Array, Rollout


def ends_with(text: str, *, strip: bool = False, name: str = "ends_with") -> DeviceReward:
    """1 if the response ends with this text, else 0; float32 [B].

    Compared as bytes (`tokenizer.token_bytes`), for any tokenisation. The stop token is part of the
    response where it has bytes, as a full stop does that `rollout.stop_token_ids` names; an EOS has
    none. With `strip`, blanks (those of `bytes.strip`) at the end of the response do not count.

    Raises `ConfigError` for an empty text, and with `strip` for one that ends in a blank.
    """
    if not (isinstance(text, str) and text):
        raise ConfigError(f"reward {name}: the text must be a string, not empty, got {text!r}")
    wanted = text.encode()
    if strip and wanted.strip() != wanted:
        raise ConfigError(f"reward {name}: {text!r} begins or ends in a blank, which strip removes")
    ending_M = np.frombuffer(wanted, np.uint8).astype(np.int32)

    def score(rollout: Rollout, columns: dict[str, Any], tables: ByteTables) -> Array:
        stream = byte_stream(rollout.response_ids_BT, rollout.mask_BT, tables, strip=strip)
        at_BM = stream.sizes_B[:, None] - len(wanted) + jnp.arange(len(wanted))[None]
        ends_B = jnp.all(bytes_at(stream, at_BM, tables) == jnp.asarray(ending_M)[None], axis=1)
        return ends_B.astype(jnp.float32)

    return DeviceReward(name, score, byte_tables)
