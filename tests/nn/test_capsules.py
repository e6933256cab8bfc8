"""Capsules beside the equations of the paper, written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
from filled import filled, quickly

from jdl import nn
from jdl.nn.layers.capsules import length

KEY = jax.random.key(0)


def test_squash_keeps_the_direction_and_bounds_the_length():
    x = jax.random.normal(KEY, (50, 8)) * jnp.logspace(-3, 3, 50)[:, None]
    norms = np.linalg.norm(x, axis=-1)
    squashed = np.asarray(nn.squash(x))
    np.testing.assert_allclose(np.linalg.norm(squashed, axis=-1), norms**2 / (1 + norms**2), rtol=2e-2, atol=1e-8)
    cosines = (squashed * x).sum(-1) / np.linalg.norm(squashed, axis=-1) / norms
    np.testing.assert_allclose(cosines, 1, rtol=1e-5)


def test_nothing_has_a_finite_gradient():
    for function in (lambda x: nn.squash(x).sum(), lambda x: length(x).sum()):
        assert np.isfinite(jax.grad(function)(jnp.zeros((2, 4)))).all()


def test_routing_is_procedure_1():
    votes = np.asarray(jax.random.normal(KEY, (2, 6, 3, 4)))
    for iterations in (1, 3):
        ours = np.asarray(nn.route(jnp.asarray(votes), iterations))
        for row in range(2):
            logits = np.zeros((6, 3))
            for _ in range(iterations):
                couplings = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                outputs = np.zeros((3, 4))
                for capsule in range(3):
                    total = sum(couplings[i, capsule] * votes[row, i, capsule] for i in range(6))
                    square = (total**2).sum()
                    outputs[capsule] = square / (1 + square) * total / np.sqrt(square)
                for i, capsule in np.ndindex(6, 3):
                    logits[i, capsule] += votes[row, i, capsule] @ outputs[capsule]
            np.testing.assert_allclose(ours[row], outputs, atol=1e-5)


def test_a_network_draws_the_image_of_the_class_that_it_is_told():
    images = jax.random.normal(KEY, (3, 28, 28, 1))
    network = nn.CapsNet(4, 8, kinds=2, decoder=(16,))
    variables = filled(network, images)
    chosen = quickly(network.apply)(variables, images)
    draw = quickly(lambda labels: network.apply(variables, images, jax.nn.one_hot(labels, 4)))
    told, other = draw(chosen.lengths.argmax(-1)), draw((chosen.lengths.argmax(-1) + 1) % 4)
    assert chosen.reconstruction.shape == images.shape
    np.testing.assert_allclose(chosen.reconstruction, told.reconstruction, atol=1e-6)
    assert not np.allclose(chosen.reconstruction, other.reconstruction)
