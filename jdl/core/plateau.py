"""The learning rate reduced where a metric no longer improves, of the training or of the validation data."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, PyTree


class PlateauState(NamedTuple):
    """The state of an optimizer whose updates are scaled; with several runs every leaf has a leading axis of runs.

    Attributes:
        inner: the state of the optimizer within.
        scale: the factor of its updates, 1 at first.
        best: the best value of the monitored metric so far (lower is better).
        since: evaluations since it was that good.
        factor, patience, min_scale: as given to `reduce_on_plateau`.
    """

    inner: Any
    scale: Array
    best: Array
    since: Array
    factor: Array
    patience: Array
    min_scale: Array


def reduce_on_plateau(
    optimizer: optax.GradientTransformation,
    *,
    of: Literal["validation", "training"] = "validation",
    factor: float = 0.1,
    patience: int = 5,
    min_scale: float = 0.0,
    window: int = 100,
) -> optax.GradientTransformation:
    """Multiply the updates of an optimizer by `factor` each time a metric has not improved for a while.

    Args:
        optimizer: any transformation of Optax, with its own learning rate or schedule.
        of: "validation", the metric that `fit` monitors, at each evaluation (`fit(validation=..., monitor=...)`), for
            each run by itself; or "training", the loss of the updates themselves (`optax.contrib.reduce_on_plateau`).
        factor: of the updates, each time.
        patience: evaluations without improvement, or, for "training", windows.
        min_scale: the least product of these factors.
        window: updates whose mean loss is one value, for "training".

    Raises:
        ValueError: for a factor outside (0, 1), and for a patience or window below 1.
    """
    if not 0 < factor < 1 or patience < 1 or window < 1:
        raise ValueError(
            f"reduce_on_plateau(factor={factor}, patience={patience}, window={window}): the factor lies between 0 and "
            "1, patience and window are at least 1"
        )
    if of == "training":
        scaled = optax.contrib.reduce_on_plateau(
            factor=factor, patience=patience, accumulation_size=window, min_scale=min_scale
        )
        return optax.chain(optimizer, scaled)
    if of != "validation":
        raise ValueError(f'reduce_on_plateau(of={of!r}): it is "validation" or "training"')
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> PlateauState:
        return PlateauState(
            inner=inner.init(params),
            scale=jnp.float32(1),
            best=jnp.float32(jnp.inf),
            since=jnp.int32(0),
            factor=jnp.float32(factor),
            patience=jnp.int32(patience),
            min_scale=jnp.float32(min_scale),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, PlateauState]:
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        scale = lambda update: update * state.scale.astype(update.dtype)  # noqa: E731
        return jax.tree.map(scale, updates), state._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def observed(state: PyTree, value: Array) -> PyTree:
    """A learner's state after an evaluation; unchanged if no optimizer in it waits for one.

    Args:
        state: of one run, or with a leading axis of runs.
        value: the monitored metric, a number or [runs]; lower is better.
    """

    def after(node: Any) -> Any:
        if not _is_plateau(node):
            return node
        better = value < node.best
        since = jnp.where(better, 0, node.since + 1)
        due = since > node.patience - 1
        scale = jnp.where(due, jnp.maximum(node.scale * node.factor, node.min_scale), node.scale)
        best = jnp.where(better, value, node.best).astype(node.best.dtype)
        return node._replace(scale=scale.astype(node.scale.dtype), best=best, since=jnp.where(due, 0, since))

    return jax.tree.map(after, state, is_leaf=_is_plateau)


def has_plateau(state: PyTree) -> bool:
    """Whether a learner's state waits for evaluations."""
    return any(map(_is_plateau, jax.tree.leaves(state, is_leaf=_is_plateau)))


def _is_plateau(node: Any) -> bool:
    return isinstance(node, PlateauState)
