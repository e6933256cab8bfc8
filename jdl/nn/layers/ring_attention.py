"""Ring attention over sequences spread over several devices: keys and values move around the ring, queries stay.

While attending, no device ever holds the scores of the whole sequence, or the keys and values of more than two
devices.

Sources: Liu, Zaharia and Abbeel, "Ring attention with blockwise transformers for near-infinite context", 2023; for
the running sums of the softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float


class Ring(NamedTuple):
    """The devices over which sequences are split.

    Attributes:
        axis: mesh axis that splits the tokens of a sequence
        rows: mesh axis that splits the batch
    """

    mesh: Mesh
    axis: str
    rows: str | tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of parts that a sequence is split into."""
        return self.mesh.shape[self.axis]


_ring: contextvars.ContextVar[Ring | None] = contextvars.ContextVar("jdl_ring", default=None)


def current_ring() -> Ring | None:
    """Return the ring that networks being traced are spread over, or None."""
    return _ring.get()


@contextlib.contextmanager
def over_ring(mesh: Mesh, axis: str, rows: str | tuple[str, ...]) -> Iterator[None]:
    """Split the sequences of networks traced in this context over a ring of devices.

    Args:
        axis: mesh axis that splits the tokens of a sequence
        rows: mesh axis that splits the batch
    """
    token = _ring.set(Ring(mesh, axis, rows))
    try:
        yield
    finally:
        _ring.reset(token)


def ring_attention(
    query: Float[Array, "batch time heads features"],
    key: Float[Array, "batch time kv_heads features"],
    value: Float[Array, "batch time kv_heads features"],
    mask: Bool[Array, "#batch #heads #time time"] | None,
    causal: bool,
    ring: Ring,
) -> Float[Array, "batch time heads features"]:
    """Compute `jax.nn.dot_product_attention` for sequences split over a ring of devices.

    The length of the sequences must be a multiple of the ring's size.

    Args:
        mask: true where attention is allowed; None for everywhere
        causal: attend only to the same and earlier positions
        ring: the devices
    """
    tokens = PartitionSpec(ring.rows, ring.axis)
    if mask is None:
        mask = jnp.ones((1, 1, 1, query.shape[1]), bool)
    of_mask = PartitionSpec(ring.rows if len(mask) > 1 else None, None, ring.axis if mask.shape[2] > 1 else None)

    def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
        batch, time, heads, features = query.shape
        kv_heads = key.shape[2]
        exact = jnp.promote_types(query.dtype, jnp.float32)
        grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, features).astype(exact) * features**-0.5
        own = jax.lax.axis_index(ring.axis)
        places = jnp.arange(time)

        def meet(step: Array, key: Array, value: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            highest, total, attended = sums
            block = (own - step) % ring.size  # index of the device that these keys come from
            scores = jnp.einsum("btkgf,bskf->bkgts", grouped, key.astype(exact))
            allowed = jax.lax.dynamic_slice_in_dim(mask, block * time, time, 3)
            allowed = jnp.broadcast_to(allowed, (len(mask), heads if mask.shape[1] > 1 else 1, time, time))
            if causal:
                allowed &= (block * time + places)[None, :] <= (own * time + places)[:, None]
            groups = (kv_heads, heads // kv_heads) if mask.shape[1] > 1 else (1, 1)
            allowed = allowed.reshape(len(mask), *groups, time, time)
            # Finite, so that a row that may attend to nothing attends to everything equally, as on one device.
            scores = jnp.where(allowed, scores, -0.7 * jnp.finfo(exact).max)
            higher = jnp.maximum(highest, scores.max(-1))
            weights, before = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
            met = jnp.einsum("bkgts,bskf->bkgtf", weights, value.astype(exact))
            return higher, total * before + weights.sum(-1), attended * before[..., None] + met

        @jax.checkpoint  # recompute the scores in the backward pass
        def step(now: tuple[Any, ...], number: Array) -> tuple[tuple[Any, ...], None]:
            key, value, sums = now
            sums = meet(number, key, value, sums)
            on = [(device, (device + 1) % ring.size) for device in range(ring.size)]
            return (*jax.lax.ppermute((key, value), ring.axis, on), sums), None

        shape = (batch, kv_heads, heads // kv_heads, time)
        nothing = jnp.full(shape, -jnp.inf, exact), jnp.zeros(shape, exact), jnp.zeros((*shape, features), exact)
        (_, _, (_, total, attended)), _ = jax.lax.scan(step, (key, value, nothing), jnp.arange(ring.size))
        outputs = (attended / total[..., None]).astype(query.dtype)
        return jnp.moveaxis(outputs, 3, 1).reshape(batch, time, heads, features)

    return jax.shard_map(
        attend,
        mesh=ring.mesh,
        in_specs=(tokens, tokens, tokens, of_mask),
        out_specs=tokens,
        check_vma=False,
    )(query, key, value, mask)
