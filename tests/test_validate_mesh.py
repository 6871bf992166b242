"""Meshes that cannot be are refused in one line, and what the line proposes can be."""

import itertools
import math

import pytest

from ppo_jax.config import Config, ModelConfig, ParallelOptions, replace
from ppo_jax.errors import ConfigError
from ppo_jax.validate import check_config, check_devices, check_shared

SIZES = (-1, 1, 2, 3, 4, 8)


def config_of(data, fsdp, tensor, **changes):
    sizes = {"parallel.data": data, "parallel.fsdp": fsdp, "parallel.tensor": tensor}
    return replace(Config(), **sizes, **changes)


def proposals(line):
    """(key, values) of `key=value: why; nearest valid: a or b`."""
    key, _, rest = line.partition("=")
    values = rest.rpartition("nearest valid: ")[2].partition(" (")[0].partition(",")[0]
    return key, [int(value) for value in values.split(" or ")]


@pytest.mark.parametrize("data, fsdp, tensor", [*itertools.product(SIZES, repeat=3)])
@pytest.mark.parametrize("devices", [1, 2, 6, 8])
def test_every_mesh_is_made_or_refused_with_one_that_is(data, fsdp, tensor, devices):
    config = config_of(data, fsdp, tensor, **{"rollout.batch_size": 48})
    if (data, fsdp, tensor).count(-1) > 1:
        with pytest.raises(ConfigError, match="one axis alone takes the rest"):
            check_config(config)
        return
    fixed = math.prod(n for n in (data, fsdp, tensor) if n != -1)
    if devices % fixed == 0:
        check_devices(config, devices)
        sizes = config.parallel.sizes(devices)
        assert math.prod(sizes) == (devices if -1 in (data, fsdp, tensor) else fixed)
        return
    line = None
    for _ in range(6):  # an axis at a time, some of them twice
        try:
            check_devices(config, devices)
            return
        except ConfigError as error:
            assert str(error) != line
            line = str(error)
            key, values = proposals(line)
            assert key.startswith("parallel.") and f"the {devices} devices present" in line
            config = replace(config, **{key: values[0]})
    check_devices(config, devices)


def test_what_the_other_axes_leave():
    assert ParallelOptions(-1, 2, 2).sizes(8) == (2, 2, 2)
    assert ParallelOptions(1, -1, 1).sizes(8) == (1, 8, 1)
    assert ParallelOptions(2, 2, 1).sizes(8) == (2, 2, 1)
    assert ParallelOptions(-1, 16, 1).sizes(8) == (1, 16, 1)  # refused, not emptied


def test_several_processes_use_all_their_devices():
    check_devices(config_of(-1, 1, 1), 8, processes=2)
    check_devices(config_of(4, 1, 1), 8)
    with pytest.raises(ConfigError, match="2 processes has all their 8 devices, not 4"):
        check_devices(config_of(4, 1, 1), 8, processes=2)


@pytest.mark.parametrize("key", ["parallel.fsdp", "parallel.tensor"])
def test_pmap_has_data_alone(key):
    check_config(replace(Config(), **{"parallel.rollout": "pmap"}))
    with pytest.raises(ConfigError, match="parallel.rollout=pmap.*nearest valid: shard_map"):
        check_config(replace(Config(), **{"parallel.rollout": "pmap", key: 2}))


@pytest.mark.parametrize(
    "shape, tensor, near",
    [
        ({"num_kv_heads": 2}, 4, 2),
        ({"num_heads": 6, "num_kv_heads": 6}, 4, 2),
        ({"num_heads": 8, "num_kv_heads": 8, "mlp_dim": 100}, 8, 4),
        ({"num_heads": 3, "num_kv_heads": 3}, 2, 1),
    ],
)
def test_heads_and_columns_must_be_shared_evenly(shape, tensor, near):
    model = ModelConfig(**{"num_heads": 8, "num_kv_heads": 4, **shape})
    with pytest.raises(ConfigError, match=f"parallel.tensor={tensor}.*nearest valid: {near}$"):
        check_shared(config_of(-1, 1, tensor), model, 8)
    check_shared(config_of(-1, 1, near), model, 8)
    check_shared(config_of(-1, tensor, 1), model, 8)


@pytest.mark.parametrize("width, fsdp, near", [(896, 256, 128), (576, 128, 64), (64, 3, 1)])
def test_the_width_must_be_shared_evenly(width, fsdp, near):
    """Else every weight would be whole on every device."""
    model = ModelConfig(embed_dim=width)
    says = f"parallel.fsdp={fsdp}: .* {width}; nearest valid: {near} "
    with pytest.raises(ConfigError, match=says):
        check_shared(config_of(1, fsdp, 1), model, fsdp)
    with pytest.raises(ConfigError, match=f"parallel.fsdp=-1: {fsdp} devices cannot share"):
        check_shared(config_of(1, -1, 1), model, fsdp)
    check_shared(config_of(-1, near, 1), model, fsdp)


def test_one_matrix_for_q_k_and_v_is_not_cut():
    model = ModelConfig(family="gpt2", num_kv_heads=4, fused_qkv=True)
    with pytest.raises(ConfigError, match="family gpt2.*nearest valid: 1"):
        check_shared(config_of(-1, 1, 2), model, 8)
