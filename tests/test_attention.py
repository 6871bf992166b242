"""Attention against loops in float64; which kernel is chosen, and what is said of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from attention_oracle import Inputs, at_real, expected, make_config, make_inputs, run
from ppo_jax import attention, attention_kernels
from ppo_jax.errors import ConfigError

SWITCHES = {
    "plain": {},
    "one kv head": {"heads": 6, "kv_heads": 1},
    "every head its own": {"heads": 3, "kv_heads": 3},
    "scale": {"attention_scale": 0.7},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "softcap": {"attention_softcap": 2.0},
    "all": {"window": 4, "attention_softcap": 1.5, "attention_scale": 0.3, "head_dim": 5},
}
SWITCHES = [pytest.param(make_config(**values), id=name) for name, values in SWITCHES.items()]


@pytest.mark.parametrize("config", SWITCHES)
def test_whole_sequences_equal_loops_in_float64(config):
    inputs = make_inputs(config)
    traced = jax.jit(lambda inputs, local: run(config, "xla", inputs, local))
    for local in (False, True) if config.window else (False,):
        static = jax.jit(lambda inputs, local=local: run(config, "xla", inputs, local))
        want = at_real(inputs, expected(config, inputs, local))
        for out in (static(inputs), traced(inputs, local)):
            assert np.isfinite(out).all()
            np.testing.assert_allclose(at_real(inputs, out), want, atol=2e-6)


@pytest.mark.parametrize("widths", [(11,), (5, 6), (5, 1, 5)], ids=str)
@pytest.mark.parametrize("config", SWITCHES)
def test_one_query_sees_what_the_last_row_of_a_whole_sequence_sees(config, widths):
    """Every row at a column of its own, with columns of the cache after it still unwritten, and
    with blocks of the cache that are read and that are not."""
    inputs = make_inputs(config, rows=((0, 11, 0), (4, 7, 0), (1, 10, 0)))
    ends = np.cumsum(widths)
    split = lambda x_BSGK: np.split(np.swapaxes(x_BSGK, 1, 2), ends[:-1], axis=2)
    cache = list(zip(split(inputs.k_BSGK), split(inputs.v_BSGK), strict=True))
    row_B = np.arange(3)
    for local in (False, True) if config.window else (False,):
        one = jax.jit(lambda *args, local=local: attention.attend_one(config, *args, local))
        want_BSHK = expected(config, inputs, local)
        for column_B in ((4, 4, 4), (0, 4, 3), (10, 5, 6), (10, 10, 10)):
            column_B = np.asarray(column_B)
            visible_BS = inputs.mask_BS & (np.arange(11)[None] <= column_B[:, None])
            q_B1HK = inputs.q_BSHK[row_B, column_B][:, None]
            reach = np.searchsorted(ends, column_B.max(), side="right")
            spoilt = [(k + 1e3, v * np.nan) for k, v in cache[reach + 1 :]]
            read = cache[: reach + 1] + spoilt
            out = one(q_B1HK, read, visible_BS, column_B, reach)
            np.testing.assert_allclose(out[:, 0], want_BSHK[row_B, column_B], atol=2e-6)


@pytest.mark.parametrize("config", SWITCHES)
def test_padding_gets_no_gradient_and_gives_none(config):
    inputs = make_inputs(config)

    def loss(arrays):
        out = run(config, "xla", Inputs(*arrays, inputs.mask_BS), config.window is not None)
        return jnp.sum(jnp.where(inputs.mask_BS[:, :, None, None], out**2, 0))

    grads = jax.jit(jax.grad(loss))(inputs[:3])
    for grad in map(np.asarray, grads):
        assert np.isfinite(grad).all()
        assert not grad[~inputs.mask_BS].any()
    assert np.asarray(grads[2])[inputs.mask_BS].any(axis=(1, 2)).all()


@pytest.fixture
def capability(monkeypatch):
    def be(text: str) -> None:
        monkeypatch.setattr(attention_kernels, "_capability", lambda: text)
        monkeypatch.setattr(attention_kernels, "_missing_cudnn", lambda: None)

    return be


@pytest.mark.parametrize(
    ("platform", "device", "dtype", "switches", "kernel"),
    [
        ("cpu", "", "float32", {}, "xla"),
        ("cpu", "", "bfloat16", {}, "xla"),
        ("METAL", "", "bfloat16", {}, "xla"),
        ("tpu", "", "bfloat16", {}, "splash"),
        ("tpu", "", "float32", {"window": 5, "attention_softcap": 3.0, "head_dim": 20}, "splash"),
        ("gpu", "8.0", "bfloat16", {"window": 5, "attention_scale": 0.5}, "cudnn"),
        ("cuda", "", "bfloat16", {"head_dim": 128}, "cudnn"),
        ("gpu", "9.0", "bfloat16", {"head_dim": 256}, "cudnn"),
        ("gpu", "8.0", "float32", {}, "xla"),
        ("gpu", "8.0", "bfloat16", {"attention_softcap": 50.0}, "xla"),
        ("gpu", "8.0", "bfloat16", {"head_dim": 20}, "xla"),
        ("gpu", "8.9", "bfloat16", {"head_dim": 136}, "xla"),
        ("gpu", "", "bfloat16", {"head_dim": 256}, "xla"),
        ("gpu", "9.0", "bfloat16", {"head_dim": 264}, "xla"),
        ("gpu", "10.0", "bfloat16", {"head_dim": 256}, "xla"),
        ("gpu", "7.5", "bfloat16", {}, "xla"),
        ("gpu", "gfx942", "bfloat16", {}, "xla"),
        ("rocm", "gfx942", "bfloat16", {}, "xla"),
    ],
)
def test_auto_takes_the_platforms_kernel_where_it_can(
    capability, platform, device, dtype, switches, kernel
):
    capability(device)
    chosen, reason = attention.choose("auto", make_config(**switches), dtype, platform)
    assert chosen == kernel
    assert reason
    home = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform)
    if home is None or chosen == home:
        assert reason == f"auto on {platform}"
    else:
        assert reason.startswith(f"{home} needs") or reason.startswith(f"{home} has no")
    # Whatever auto takes can be asked for by name, and XLA anywhere.
    for asked in (chosen, "xla"):
        assert attention.choose(asked, make_config(**switches), dtype, platform) == (
            asked,
            "asked for",
        )


@pytest.mark.parametrize(
    ("asked", "platform", "device", "dtype", "switches", "said", "nearest"),
    [
        ("cudnn", "cpu", "", "bfloat16", {}, "an NVIDIA GPU, not the platform cpu", "xla"),
        ("cudnn", "tpu", "", "bfloat16", {}, "an NVIDIA GPU, not the platform tpu", "splash"),
        ("cudnn", "gpu", "gfx942", "bfloat16", {}, "an NVIDIA GPU, not gfx942", "xla"),
        ("cudnn", "gpu", "7.0", "bfloat16", {}, "8.0 (Ampere) or later, not 7.0", "xla"),
        ("cudnn", "gpu", "9.0", "float32", {}, "model.compute_dtype=bfloat16, not float32", "xla"),
        ("cudnn", "gpu", "9.0", "bfloat16", {"attention_softcap": 30.0}, "soft cap", "xla"),
        (
            "cudnn",
            "gpu",
            "9.0",
            "bfloat16",
            {"head_dim": 12},
            "multiple of 8, not the model's 12",
            "xla",
        ),
        ("cudnn", "gpu", "8.0", "bfloat16", {"head_dim": 256}, "at most 128 on this GPU", "xla"),
        ("cudnn", "gpu", "9.0", "bfloat16", {"head_dim": 512}, "at most 256 on this GPU", "xla"),
        ("splash", "cpu", "", "float32", {}, "a TPU, not the platform cpu", "xla"),
        ("splash", "gpu", "9.0", "bfloat16", {}, "a TPU, not the platform gpu", "cudnn"),
    ],
)
def test_a_kernel_that_cannot_be_had_is_refused(
    capability, asked, platform, device, dtype, switches, said, nearest
):
    capability(device)
    with pytest.raises(ConfigError) as error:
        attention.choose(asked, make_config(**switches), dtype, platform)
    message = str(error.value)
    assert message.startswith(f"model.attention={asked} ")
    assert said in message
    assert message.endswith(f"nearest valid: model.attention={nearest}")
    assert "\n" not in message


def test_without_splash_in_jax_a_tpu_runs_xla(monkeypatch):
    def missing():
        raise ImportError("No module named splash_attention")

    monkeypatch.setattr(attention_kernels, "_splash", missing)
    chosen, reason = attention.choose("auto", make_config(), "bfloat16", "tpu")
    assert chosen == "xla"
    assert "not in this version of jax" in reason
    with pytest.raises(ConfigError, match="model.attention=splash is not in this version of jax"):
        attention.choose("splash", make_config(), "bfloat16", "tpu")


def test_a_gpu_without_cudnn_runs_xla(monkeypatch):
    def undetected():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(attention_kernels, "_capability", lambda: "9.0")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", undetected)
    chosen, reason = attention.choose("auto", make_config(), "bfloat16", "gpu")
    assert chosen == "xla" and "cuDNN is not detected" in reason
    with pytest.raises(ConfigError, match="model.attention=cudnn needs cuDNN.*attention=xla"):
        attention.choose("cudnn", make_config(), "bfloat16", "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 92000)
    assert attention.choose("auto", make_config(), "bfloat16", "gpu")[0] == "cudnn"


def test_the_device_here_is_asked_for_its_capability():
    assert attention_kernels._capability() == ""
