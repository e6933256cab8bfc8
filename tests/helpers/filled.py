"""Variables without compiling an initialization, which takes longer than most networks' tests."""

import jax
import numpy as np


def filled(model, *arguments, seed=0, **options):
    """Small random numbers, and ones where a scale or a variance is due; nothing at zero."""
    shapes = jax.eval_shape(lambda key: model.init(key, *arguments, **options), jax.random.key(0))
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        middle = 1 if path[-1].key in ("scale", "var") else 0
        fan = leaf.shape[-2] if leaf.ndim > 1 else 100
        number = (middle + random.normal(size=leaf.shape) / np.sqrt(fan)).astype(leaf.dtype)
        return (number ** (1 + middle)).astype(leaf.dtype)  # a power of half precision may be single

    return jax.tree.map(jax.numpy.asarray, jax.tree_util.tree_map_with_path(fill, shapes))


def quickly(function, **options):
    """Compiled without optimizations: it runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)
