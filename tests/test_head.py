"""The head: its gradient against float64, and in which dtypes it goes between devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import PartitionSpec as P

from ppo_jax.config import ModelConfig, ParallelOptions
from ppo_jax.decoder import Decoder
from ppo_jax.model import embed, head_of, head_product, unembed
from ppo_jax.sharding import make_mesh, on_each_device

CONFIG = ModelConfig(vocab_size=64, embed_dim=32)
KEPT, USED = P("tensor", "fsdp"), P("tensor", None)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_the_head(tied, lead, dtype):
    """The table's is not rounded to the dtype of the states: chunks and devices add to it."""
    rng = np.random.default_rng(0)
    shape = (6, 5) if tied else (5, 6)
    hidden = jnp.asarray(rng.normal(size=(*lead, 5)), dtype)
    table = jnp.asarray(rng.normal(size=shape), jnp.float32)
    along = jnp.asarray(rng.normal(size=(*lead, 6)), jnp.float32)

    def pulled(hidden, table):
        logits, pull = jax.vjp(functools.partial(head_product, tied), hidden, table)
        return logits, *pull(along)

    logits, from_hidden, from_table = jax.jit(pulled)(hidden, table)
    assert (logits.dtype, from_hidden.dtype, from_table.dtype) == ("float32", dtype, "float32")
    x, kernel = np.asarray(hidden, np.float64), np.asarray(table.astype(dtype), np.float64)
    kernel_DV = kernel.T if tied else kernel
    rows = lambda y: y.reshape(-1, y.shape[-1])
    exact_DV = rows(x).T @ rows(np.asarray(along, np.float64))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(logits, x @ kernel_DV)
    close(from_table, exact_DV.T if tied else exact_DV)
    half = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    exact = np.asarray(along, np.float64) @ kernel_DV.T
    np.testing.assert_allclose(from_hidden.astype("float32"), exact, rtol=half, atol=half)


def sums_and_layouts(jaxpr):
    """(primitive, dtype, where) of what a traced program lays out or sums over devices."""
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "sharding_constraint" and out.ndim == 2:
            yield "layout", str(out.dtype), equation.params["sharding"].spec
        if equation.primitive.name.startswith("psum") and out.ndim == 2:
            yield "sum", str(out.dtype), None
        for inner in jax.tree.leaves(
            tuple(equation.params.values()),
            is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)),
        ):
            if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
                yield from sums_and_layouts(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_table_is_sent_in_the_compute_dtype_and_its_gradient_in_float32(dtype, sizes):
    """As it is traced: the CPU's compiler makes every collective float32."""
    mesh = make_mesh(ParallelOptions(*sizes))
    decoder = Decoder(CONFIG, dtype, mesh=mesh)
    table_VD = jax.random.normal(jax.random.key(0), (64, 32))
    ids_BS = jnp.arange(8 * 4, dtype=jnp.int32).reshape(8, 4)

    def loss(table_VD):
        params = {"embed": {"embedding": table_VD}}
        logits = lambda head, x: unembed(decoder, head, x)
        x_BSD = embed(decoder, params, ids_BS, ids_BS)
        return jnp.sum(jnp.tanh(on_each_device(mesh, logits, head_of(decoder, params), x_BSD)))

    found = list(sums_and_layouts(jax.make_jaxpr(jax.grad(loss))(table_VD).jaxpr))
    # Gathered to be looked up and to make logits; and a gradient added up by rows of a batch.
    gathers = [of for kind, of, where in found if kind == "layout" and where == USED]
    assert sorted(gathers) == sorted([dtype, dtype, "float32"])
    assert [of for kind, of, where in found if where == KEPT] == ["float32", "float32"]
    sums = [of for kind, of, _ in found if kind == "sum"]
    assert sums and set(sums) == {"float32"}

    whole = jax.grad(loss_of_one(dtype, ids_BS))(table_VD)
    split = jax.jit(jax.grad(loss))(table_VD)
    near = {"float32": 1e-5, "bfloat16": 2e-2}[dtype] * np.abs(whole).max()
    np.testing.assert_allclose(split, whole, rtol=0, atol=near)


def loss_of_one(dtype, ids_BS):
    decoder = Decoder(CONFIG, dtype)

    def loss(table_VD):
        params = {"embed": {"embedding": table_VD}}
        x_BSD = embed(decoder, params, ids_BS, ids_BS)
        return jnp.sum(jnp.tanh(unembed(decoder, head_of(decoder, params), x_BSD)))

    return loss
