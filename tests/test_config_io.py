"""Configs through JSON and back, and what a wrong key or value is answered with."""

import dataclasses
import json
import math
import random
from typing import Literal

import pytest

from ppo_jax.config import Config, ModelConfig, RopeScaling, replace
from ppo_jax.config_io import (
    diff,
    from_dict,
    load_config,
    nearest_key,
    save_config,
    to_dict,
    write_atomic,
)
from ppo_jax.errors import ConfigError, StorageError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner(0.5)
    maybe: Inner | None = None
    mode: Literal["a", "b"] = "a"
    name: str | None = None


def test_known_dictionary():
    config = Outer(Inner(math.inf, (1, 2)), None, "b", None)
    expected = {
        "inner": {"rate": "inf", "ids": [1, 2]},
        "maybe": None,
        "mode": "b",
        "name": None,
    }
    assert to_dict(config) == expected
    assert from_dict(Outer, expected) == config


def test_round_trip_of_random_configs(tmp_path):
    rng = random.Random(0)
    for number in range(50):
        changes = {
            "hparams.clip_high": rng.choice([math.inf, 0.2, 1e-12, rng.random()]),
            "hparams.length_penalty": rng.choice([None, -rng.random(), -math.inf]),
            "hparams.kl_coef": rng.random(),
            "rollout.stop_token_ids": tuple(rng.randrange(99) for _ in range(rng.randrange(4))),
            "rollout.top_k": rng.choice([None, 7]),
            "model.path": rng.choice([None, "ünïcode \n path"]),
            "model.shape": ModelConfig(
                rope_scaling=rng.choice([None, RopeScaling(factor=rng.random())])
            ),
            "run.progress": rng.random() < 0.5,
            "ppo.advantage": rng.choice(["gae", "rloo"]),
        }
        config = replace(Config(), **changes)
        save_config(tmp_path / "config.json", config)
        text = (tmp_path / "config.json").read_text()
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no strict JSON"))
        assert load_config(tmp_path / "config.json") == config, number
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_integers_are_floats_where_floats_are_meant():
    config = from_dict(Config, {"hparams": {"kl_coef": 1}})
    assert type(config.hparams.kl_coef) is float and config.hparams.kl_coef == 1.0
    assert config == replace(Config(), **{"hparams.kl_coef": 1.0})


@pytest.mark.parametrize(
    "data, words",
    [
        ({"hparams": {"kl_coeff": 0.1}}, ["hparams.kl_coeff", "hparams.kl_coef?"]),
        ({"kl_coef": 0.1}, ["unknown key kl_coef", "hparams.kl_coef?"]),
        ({"ppo": {"kl_coef": 0.1}}, ["unknown key ppo.kl_coef", "hparams.kl_coef?"]),
        ({"zzzz": 0.1}, ["zzzz", "model", "hparams"]),
        ({"ppo": {"epochs": "4"}}, ["ppo.epochs", "int"]),
        ({"ppo": {"epochs": True}}, ["ppo.epochs", "int"]),
        ({"ppo": {"epochs": None}}, ["ppo.epochs", "int"]),
        ({"ppo": 3}, ["ppo", "object"]),
        ({"ppo": None}, ["ppo", "object"]),
        ([], ["object"]),
        ({"hparams": {"kl_coef": "high"}}, ["hparams.kl_coef", "float"]),
        ({"hparams": {"kl_coef": True}}, ["hparams.kl_coef", "float"]),
        ({"hparams": {"kl_coef": -(10**400)}}, ["hparams.kl_coef", "float", "1.8e+308"]),
        ({"run": {"progress": 1}}, ["run.progress", "bool"]),
        ({"ppo": {"advantage": "gea"}}, ["ppo.advantage", "gea", "nearest valid: gae"]),
        ({"rollout": {"stop_token_ids": [1, "x"]}}, ["rollout.stop_token_ids", "int"]),
        ({"rollout": {"stop_token_ids": 5}}, ["rollout.stop_token_ids", "int"]),
        (
            {"model": {"shape": {"rope_scaling": {"factr": 1.0}}}},
            ["model.shape.rope_scaling.factr", "model.shape.rope_scaling.factor?"],
        ),
    ],
)
def test_mistakes_are_named_in_one_line(data, words):
    with pytest.raises(ConfigError) as raised:
        from_dict(Config, data, where="some.json")
    message = str(raised.value)
    assert message.startswith("some.json: ") and "\n" not in message
    for word in words:
        assert word in message


def test_missing_keys():
    assert from_dict(Config, {}) == Config()
    with pytest.raises(ConfigError, match="missing key maybe.rate"):
        from_dict(Outer, {"maybe": {"ids": []}})


def test_nearest_key():
    assert nearest_key(Config, "hparam.lam") == "hparams.lam"
    assert nearest_key(Config, "learning_rat") == "hparams.learning_rate"
    assert nearest_key(Config, "run.sed") == "run.seed"
    assert nearest_key(Config, "qqqqqq") is None


def test_diff():
    new = replace(
        Config(),
        **{
            "hparams.clip_low": math.inf,
            "rollout.stop_token_ids": (3,),
            "model.shape": ModelConfig(rope_scaling=RopeScaling(factor=2.0)),
        },
    )
    assert diff(Config(), Config()) == []
    lines = diff(Config(), new)
    assert 'hparams.clip_low: 0.2 -> "inf"' in lines
    assert "rollout.stop_token_ids: [] -> [3]" in lines
    (scaling,) = [line for line in lines if line.startswith("model.shape.rope_scaling")]
    assert "null -> " in scaling and len(lines) == 3


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="nothing.json"):
        load_config(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{'a': 1}")
    with pytest.raises(ConfigError, match="broken.json: not valid JSON"):
        load_config(tmp_path / "broken.json")


def test_atomic_write(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with pytest.raises(StorageError, match="nowhere"):
        write_atomic(tmp_path / "nowhere" / "file", "x")
