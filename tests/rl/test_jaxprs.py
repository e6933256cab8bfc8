"""Functions divided by what they depend on compute what they computed whole: JAX's internals do what they did."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from rl.jaxprs import prune_unused, split

KEY = jax.random.key(0)


def names(jaxpr):
    found = set()
    for equation in jaxpr.eqns:
        found |= {equation.primitive.name}.union(*[names(inner) for inner in jaxprs_in_params(equation.params)])
    return found


def test_steps_draw_nothing():
    def step(key, x, mask):
        logits = jnp.where(mask, x @ jnp.ones((3, 4)), -1e9)
        return jax.random.categorical(key, logits), jax.random.bernoulli(key, x.mean(), (2,))

    x, mask = jnp.ones((5, 3)), jnp.ones((5, 4), bool)
    draw, use = split(step, KEY, x, mask)
    drawn = draw(KEY)
    for one, other in zip(use(drawn, x, mask), step(KEY, x, mask), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any("random" in name for name in names(jax.make_jaxpr(use)(drawn, x, mask)))
    assert "dot_general" not in names(jax.make_jaxpr(draw)(KEY))


def test_what_is_no_draw_is_not_repeated_for_every_step():
    table = jnp.ones((100, 100))
    draw, _ = split(lambda key, x: (x @ jnp.sin(table))[0] + jax.random.normal(key), KEY, table)
    assert [leaf.shape for leaf in draw(KEY)] == [()]


def test_only_leaves_that_are_used_are_passed():
    agent = {"a": jnp.arange(3.0), "b": jnp.ones(2), "key": KEY}
    pruned, shape = prune_unused(lambda agent, x: agent["a"] * x + 0 * agent["b"].shape[0], agent, jnp.ones(3))
    assert pruned.used == [0]
    assert shape.shape == (3,)
    np.testing.assert_array_equal(pruned({0: agent["a"]}, jnp.full(3, 2.0)), 2 * agent["a"])


def test_a_leaf_used_in_a_branch_alone_is_passed():
    def function(agent, x):
        return jax.lax.cond(x > 0, lambda: agent["b"].sum(), lambda: jax.random.uniform(agent["key"]))

    agent = {"a": jnp.arange(3.0), "b": jnp.ones(2), "key": KEY}
    pruned, _ = prune_unused(function, agent, jnp.zeros(()))
    assert pruned.used == [1, 2]
    leaves = dict(enumerate(jax.tree.leaves(agent)))
    for x in (0.0, 1.0):
        np.testing.assert_array_equal(pruned(leaves, x), function(agent, x))
