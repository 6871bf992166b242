"""The fused kernels where there is none of their hardware: splash attention in Pallas's
interpreter, cuDNN's call answered by XLA's implementation of the same function, and lowered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from attention_oracle import Inputs, at_real, expected, make_config, make_inputs, run
from ppo_jax import attention_kernels
from ppo_jax.config import ParallelOptions
from ppo_jax.sharding import BATCH, make_mesh

LONG = ((0, 300, 0), (150, 100, 50), (299, 1, 0))  # of several blocks


@pytest.fixture
def splash(monkeypatch):
    kernels, _ = attention_kernels._splash()
    interpreted = functools.partial(kernels.make_splash_mha, interpret=True)
    monkeypatch.setattr(kernels, "make_splash_mha", interpreted)
    attention_kernels._splash_kernel.cache_clear()
    yield "splash"
    attention_kernels._splash_kernel.cache_clear()


@pytest.fixture
def cudnn(monkeypatch):
    real = jax.nn.dot_product_attention

    def on_xla(*args, **options):
        assert options.pop("implementation") in ("cudnn", "xla")
        return real(*args, **options, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
    return "cudnn"


@pytest.fixture(params=["splash", "cudnn"])
def kernel(request):
    return request.getfixturevalue(request.param)


def check(config, kernel, inputs, local, mesh=None):
    out = jax.jit(lambda inputs: run(config, kernel, inputs, local, mesh))(inputs)
    assert np.isfinite(out).all()
    want = expected(config, inputs, bool(local))
    np.testing.assert_allclose(at_real(inputs, out), at_real(inputs, want), atol=2e-5)


@pytest.mark.parametrize(
    ("switches", "local"),
    [
        ({}, False),
        ({"heads": 3, "kv_heads": 1, "attention_scale": 0.7, "head_dim": 12}, False),
        ({"heads": 2, "kv_heads": 2, "window": 3}, True),
        ({"window": 3}, False),
        ({"window": 1}, True),
    ],
)
def test_kernels_equal_loops_in_float64(kernel, switches, local):
    config = make_config(**switches)
    check(config, kernel, make_inputs(config), local)


@pytest.mark.parametrize("kind", [True, False])
def test_the_kind_of_a_layer_may_be_traced(kernel, kind):
    config = make_config(window=4, attention_scale=0.3)
    inputs = make_inputs(config)
    out = jax.jit(lambda inputs, local: run(config, kernel, inputs, local))(inputs, kind)
    want = expected(config, inputs, kind)
    np.testing.assert_allclose(at_real(inputs, out), at_real(inputs, want), atol=2e-5)


@pytest.mark.parametrize("window", [None, 140])
def test_splash_of_several_blocks(splash, monkeypatch, window):
    monkeypatch.setattr(attention_kernels, "LONGEST_BLOCK", 128)
    config = make_config(heads=2, kv_heads=1, window=window, attention_softcap=2.0)
    assert attention_kernels._blocks(300) == (512, 128)
    check(config, splash, make_inputs(config, LONG), window is not None)


def gradients(config, kernel, inputs, local):
    """Of a weighted sum of the outputs of real tokens, to q, k and v."""
    weights = np.random.default_rng(1).normal(size=inputs.q_BSHK.shape).astype(np.float32)

    def loss(arrays):
        out = run(config, kernel, Inputs(*arrays, inputs.mask_BS), local)
        return jnp.sum(jnp.where(inputs.mask_BS[:, :, None, None], out * weights, 0))

    return jax.jit(jax.grad(loss))(inputs[:3])


@pytest.mark.parametrize(("kernel", "cap"), [("splash", None), ("splash", 2.0), ("cudnn", None)])
def test_gradients_of_kernels_are_those_of_xla(request, kernel, cap):
    request.getfixturevalue(kernel)
    config = make_config(window=3, attention_softcap=cap)
    inputs = make_inputs(config)
    want = gradients(config, "xla", inputs, True)
    for got, right in zip(gradients(config, kernel, inputs, True), want, strict=True):
        np.testing.assert_allclose(got, right, atol=2e-5)
        assert not np.asarray(got)[~inputs.mask_BS].any()


def test_what_cudnn_leaves_at_padding_goes_nowhere(cudnn, monkeypatch):
    """Neither its outputs nor its gradients there: both may be anything."""
    on_xla = jax.nn.dot_product_attention

    def spoiled(q, k, v, *, query_seq_lengths, **options):
        @jax.custom_vjp
        def call(arrays, lengths_B):
            return forward(arrays, lengths_B)[0]

        def spoil(x_BSHK, lengths_B):
            padding_BS = jnp.arange(x_BSHK.shape[1])[None] >= lengths_B[:, None]
            return jnp.where(padding_BS[:, :, None, None], jnp.nan, x_BSHK)

        def forward(arrays, lengths_B):
            plain = lambda arrays: on_xla(*arrays, query_seq_lengths=lengths_B, **options)
            out, back = jax.vjp(plain, arrays)
            return spoil(out, lengths_B), (back, lengths_B)

        def backward(residuals, out_gradient):
            back, lengths_B = residuals
            return [spoil(g, lengths_B) for g in back(out_gradient)[0]], None

        call.defvjp(forward, backward)
        return call([q, k, v], query_seq_lengths)

    config = make_config()
    inputs = make_inputs(config, rows=((0, 11, 0), (4, 5, 2), (3, 8, 0), (0, 6, 5)))
    want = gradients(config, "xla", inputs, False)
    monkeypatch.setattr(jax.nn, "dot_product_attention", spoiled)
    check(config, cudnn, inputs, False)
    for got, right in zip(gradients(config, cudnn, inputs, False), want, strict=True):
        np.testing.assert_allclose(got, right, atol=2e-5)


def test_devices_take_their_own_rows(kernel):
    """In global view over four devices, and inside a `shard_map`, without a collective."""
    config, mesh = make_config(window=3), make_mesh(ParallelOptions())
    inputs = make_inputs(config)
    rows = NamedSharding(mesh, BATCH)
    everywhere = lambda inputs: run(config, kernel, inputs, True, mesh)
    within = jax.shard_map(
        everywhere, mesh=mesh, in_specs=(BATCH,), out_specs=BATCH, check_vma=False
    )
    want = at_real(inputs, expected(config, inputs, True))
    for program in (everywhere, within):
        compiled = jax.jit(program).lower(jax.device_put(inputs, rows)).compile()
        assert not re.search(r"all-gather|all-to-all|collective-permute", compiled.as_text())
        out = compiled(jax.device_put(inputs, rows))
        assert out.sharding.is_equivalent_to(rows, 4)
        np.testing.assert_allclose(at_real(inputs, out), want, atol=2e-5)


@pytest.mark.parametrize("columns", [10, 11])
@pytest.mark.parametrize("local", [True, False])
def test_cudnns_calls_forward_and_backward(monkeypatch, columns, local):
    """Lowered for CUDA: shapes in order, causal with padding, the window its own token included."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    config = make_config(window=5, head_dim=64)
    inputs = make_inputs(config, rows=((1, columns - 1, 0),) * 2)
    inputs = Inputs(*(x.astype(jnp.bfloat16) for x in inputs[:3]), inputs.mask_BS)

    def loss(arrays):
        out = run(config, "cudnn", Inputs(*arrays, inputs.mask_BS), local)
        return jnp.sum(out.astype(jnp.float32))

    program = jax.jit(jax.grad(loss)).trace(inputs[:3]).lower(lowering_platforms=("cuda",))
    calls = re.findall(r"custom_call @(__cudnn\$\w+)\((.*)", program.as_text())
    assert [name for name, _ in calls] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    for _, text in calls:
        assert "PADDING_CAUSAL" in text
        assert re.search(r"sliding_window_length\\22: (\d+)", text)[1] == ("5" if local else "0")
        assert "tensor<2xi32>, tensor<2xi32>) -> " in text
        even = 2 * ((columns + 1) // 2)
        assert f"(tensor<2x{even}x4x64xbf16>, tensor<2x{even}x2x64xbf16>" in text


@pytest.mark.parametrize("S", [2, 127, 128, 129, 511, 512, 513, 768, 1000, 2049])
def test_blocks_cover_the_sequence(S):
    width, block = attention_kernels._blocks(S)
    assert width >= S
    assert width % block == block % attention_kernels.LANES == 0
    assert width < S + 256


def test_a_kernels_tables_are_built_once(splash):
    """While a program is traced, as arrays any other program may hold too."""
    build = functools.partial(attention_kernels._splash_kernel, 2, 128, 128, None, None)
    traced = []
    jax.jit(lambda: traced.append(build()) or 0)()
    assert build() is traced[0]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(traced))
