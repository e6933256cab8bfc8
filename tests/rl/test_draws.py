"""What is drawn for a whole rollout at once is what would be drawn step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from rl.runners import draws

KEYS = jax.random.split(jax.random.key(0), 20)


def walk(carry, key):
    """Random numbers as they come in acting and in environments: as they are, compared, in branches, by shape."""
    place, limit = carry
    one, two = jax.random.split(key)
    noise = jax.random.normal(one, (3,)) * limit
    away = jax.random.uniform(two) < jax.nn.sigmoid(place.sum())
    place = jax.lax.cond(away, lambda x: x + jax.random.gumbel(two, (3,)), lambda x: jnp.tanh(x + noise), place)
    return (place, limit), (noise, away, jnp.arange(2), jax.random.categorical(one, place))


def carry():
    return jnp.zeros(3), jnp.asarray(0.5)


def names(jaxpr):
    found = set()
    for equation in jaxpr.eqns:
        found |= {equation.primitive.name}.union(*[names(inner) for inner in jaxprs_in_params(equation.params)])
    return found


def test_it_is_a_scan():
    for one, other in zip(
        jax.tree.leaves(jax.jit(lambda: draws.scan(walk, carry(), KEYS))()),
        jax.tree.leaves(jax.jit(lambda: jax.lax.scan(walk, carry(), KEYS))()),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_too_much_is_drawn_when_it_is_needed(monkeypatch):
    monkeypatch.setattr(draws, "_AT_MOST", 100)
    traced = jax.make_jaxpr(lambda: draws.scan(walk, carry(), KEYS))()
    (loop,) = [equation for equation in traced.eqns if equation.primitive.name == "scan"]
    assert "random_bits" in names(loop.params["jaxpr"])


@pytest.mark.medium
@pytest.mark.parametrize("transform", [jax.vmap, lambda f: lambda keys: jax.lax.map(f, keys)])
def test_under_transforms(transform):
    several = jnp.stack([KEYS, KEYS[::-1]])
    (places, _), _ = transform(lambda keys: draws.scan(walk, carry(), keys))(several)
    for place, keys in zip(places, several, strict=True):
        np.testing.assert_allclose(place, draws.scan(walk, carry(), keys)[0][0], rtol=1e-5)
