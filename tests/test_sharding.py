"""Where the devices of a machine stand in the mesh."""

from types import SimpleNamespace

import pytest

from ppo_jax.config import ParallelOptions
from ppo_jax.errors import ConfigError
from ppo_jax.sharding import make_mesh


def two_slices(chips: int) -> list:
    device = lambda k: SimpleNamespace(platform="tpu", slice_index=k // (chips // 2), id=k)
    return [device(k) for k in range(chips)]


@pytest.mark.parametrize("sizes, nearest", [((1, 16, 1), 2), ((1, 8, 2), 2)])
def test_slices_share_the_data_axis_alone(sizes, nearest):
    with pytest.raises(ConfigError, match=rf"parallel.data=1: .* 2 slices.*valid: {nearest}$"):
        make_mesh(ParallelOptions(*sizes), two_slices(16))
