"""Attention around a ring of devices beside attention on one, its gradients too, and what the devices exchange."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

import jdl
from jdl.nn.layers.ring_attention import Ring, ring_attention

TIME, HEADS, FEATURES = 16, 4, 3


def ring(rows=2, parts=4):
    devices = np.array(jax.devices()[: rows * parts]).reshape(rows, parts)
    return Ring(Mesh(devices, ("data", "sequence"), axis_types=(AxisType.Auto,) * 2), "sequence", "data")


def masks():
    keys = jax.random.split(jax.random.key(5), 3)
    some = jax.random.bernoulli(keys[1], 0.5, (1, HEADS, TIME, TIME))
    return {
        "none": None,
        "padding": (jnp.arange(TIME) < jnp.array([[TIME], [5], [9], [1]]))[:, None, None],
        "of each head, rows without any": some.at[:, :, 3].set(False),
        "of each example": jax.random.bernoulli(keys[2], 0.5, (4, 1, TIME, TIME)),
    }


def plain_attention(query, key, value, mask, causal):
    """As `jax.nn.dot_product_attention`, which takes its softmax in single precision whatever it is given."""
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], 2) for x in (key, value))
    scores = jnp.einsum("bthf,bshf->bhts", query, key) * query.shape[-1] ** -0.5
    allowed = jnp.tril(jnp.ones((TIME, TIME), bool)) if causal else True
    allowed = allowed if mask is None else allowed & mask
    weights = jax.nn.softmax(jnp.where(allowed, scores, -0.7 * jnp.finfo(float).max))
    return jnp.einsum("bhts,bshf->bthf", weights, value)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("mask", "kv_heads"),
    [("none", HEADS), ("padding", 2), ("of each head, rows without any", 2), ("of each example", HEADS)],
)
def test_it_is_attention(causal, mask, kv_heads, x64):
    mask = masks()[mask]
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (4, TIME, HEADS, FEATURES))
    key, value = (jax.random.normal(k, (4, TIME, kv_heads, FEATURES)) for k in keys[1:3])
    weights = jax.random.normal(keys[3], query.shape)

    def run(attend):
        def total(*arrays):
            outputs = attend(*arrays)
            return (outputs * weights).sum(), outputs

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(query, key, value)

    ours = run(lambda q, k, v: ring_attention(q, k, v, mask, causal, ring()))
    theirs = run(lambda q, k, v: plain_attention(q, k, v, mask, causal))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, theirs)


TOKENS = np.random.default_rng(0).integers(1, 13, (32, 24)).astype(np.int32)
MODELS = {
    "gpt": lambda: jdl.nn.GPT(13, 24, 16, 2, 2),
    "llama": lambda: jdl.nn.GPT(13, 24, 16, 2, 4, num_kv_heads=2, positions="rotary", norm="rms", gated=True),
    "gpt, scanned": lambda: jdl.nn.GPT(13, 24, 16, 2, 2, scan=True),
}


def learner(model):
    data = {"input": TOKENS, "target": np.roll(TOKENS, -1, 1)}

    def loss(outputs, batch):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["target"]).mean(1)

    made = jdl.supervised(model, loss, optax.adam(1e-2), example=data)
    exact = lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    return made._replace(init=lambda key: jax.tree.map(exact, made.init(key))), data


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mesh"), [*((model, "2x4") for model in MODELS), ("gpt", "1x8")])
def test_networks_learn_what_they_learn_on_one_device(model, mesh, x64):
    one, data = learner(MODELS[model]())

    def losses(learner):
        training = jdl.jit(jdl.scan(jdl.feed(learner, 8), 10))
        state, metrics = training.step(training.init(jax.random.key(0)), data)
        return np.append(metrics["loss"].compute(), training.evaluate(state, data)["loss"].compute())

    np.testing.assert_allclose(losses(jdl.distribute(one, "sequence", mesh)), losses(one), rtol=1e-9)


@pytest.mark.medium
def test_keys_and_values_go_around_and_nothing_is_gathered():
    one, data = learner(jdl.nn.GPT(13, 24, 16, 2, 2))
    spread = jdl.distribute(one, "sequence", "1x8")
    state = jax.jit(spread.init)(jax.random.key(0))
    program = jax.jit(spread.step).lower(state, data).compile().as_text()
    assert "collective-permute" in program
    assert "all-gather" not in program
