"""The supervised learner: nested batches, modules from NNX, placement of the first state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jdl

RANDOM = np.random.default_rng(0)


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.concatenate([x["left"], x["right"]["deep"]], -1))


def nested(size=20):
    inputs = {"left": RANDOM.normal(size=(size, 2)), "right": {"deep": RANDOM.normal(size=(size, 3))}}
    inputs = jax.tree.map(lambda leaf: leaf.astype(np.float32), inputs)
    return {"input": inputs, "target": (inputs["left"][:, 0] > 0).astype(np.int32)}


@pytest.mark.medium
def test_inputs_may_be_trees():
    data = nested()
    one = jdl.supervised(TwoInputs(), jdl.losses.cross_entropy, optax.adam(0.1), example=data)
    drawn = jdl.fit(jdl.jit(jdl.feed(one, 8)), data, steps=40, validation=data, evaluation_batch_size=8)
    given = jdl.fit(jdl.jit(one), jdl.Batches(data, 8), steps=40)
    np.testing.assert_array_equal(drawn.state.params["Dense_0"]["kernel"], given.state.params["Dense_0"]["kernel"])
    assert jdl.evaluate(jdl.jit(one), drawn.state, data, 8)["loss"] < 0.3
    assert one.predict(drawn.state, data).shape == one.predict(drawn.state, data["input"]).shape == (20, 3)
    with pytest.raises(ValueError, match=r"batch\['input'\]\['right'\]\['deep'\] has shape"):
        one.step(drawn.state, data | {"input": {"left": data["input"]["left"], "right": {"deep": np.zeros((20, 9))}}})


class Dropped(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(2, 64, rngs=rngs)
        self.out = nnx.Linear(64, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, deterministic: bool = False):
        x = self.norm(self.dense(x), use_running_average=deterministic)
        return self.out(self.dropout(nnx.relu(x), deterministic=deterministic))


@pytest.mark.medium
def test_modules_from_nnx_know_whether_they_train():
    inputs = RANDOM.normal(size=(64, 2)).astype(np.float32)
    data = {"input": inputs, "target": (inputs[:, 0] > 0).astype(np.int32)}
    model = nnx.bridge.to_linen(Dropped)
    one = jdl.supervised(model, jdl.losses.cross_entropy, optax.adam(0.01), example=data)
    fitted = jdl.fit(jdl.jit(jdl.feed(one, 16)), data, steps=100)
    np.testing.assert_array_equal(one.predict(fitted.state, inputs), one.predict(fitted.state, inputs[::-1])[::-1])
    assert jdl.evaluate(one, fitted.state, data)["loss"] < 0.2
    start = one.init(jax.random.key(0))
    assert not np.array_equal(
        start.collections["batch_stats"]["norm"]["mean"], fitted.state.collections["batch_stats"]["norm"]["mean"]
    )


@pytest.mark.parametrize(
    "transform", [jdl.pmap, lambda learner: jdl.seeds(learner, 3), lambda learner: jdl.seeds(learner, 9)]
)
def test_the_first_state_lies_where_steps_leave_it(transform):  # else a step is compiled twice, and data moved
    inputs = RANDOM.normal(size=(64, 2)).astype(np.float32)
    data = {"input": inputs, "target": (inputs[:, 0] > 0).astype(np.int32)}
    one = jdl.supervised(nn.Dense(2), jdl.losses.cross_entropy, optax.adam(0.01), example=data)
    training = jdl.jit(transform(jdl.feed(one, 16)), donate=False)
    first = training.init(jax.random.key(0))
    later, _ = training.step(first, data)
    for one_leaf, other in zip(jax.tree.leaves(first), jax.tree.leaves(later), strict=True):
        assert one_leaf.sharding.is_equivalent_to(other.sharding, other.ndim), (one_leaf.sharding, other.sharding)
    assert jax.tree.leaves(first)[-1].sharding.device_set == set(jax.devices()[: 3 if training.runs == 3 else 8])
