"""Reduction of the learning rate when a metric of the training or validation data no longer improves."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, PyTree


class PlateauState(NamedTuple):
    """The state of an optimizer made by `reduce_on_plateau`. All fields except `inner` are scalars, or `[runs]`.

    Attributes:
        inner: the state of the inner optimizer.
        scale: the factor of its updates, at first 1.
        best: the lowest value of the monitored metric so far, at first infinity.
        since: evaluations since then, or since the last reduction.
        factor: as given to `reduce_on_plateau`.
        patience: as given to `reduce_on_plateau`.
        min_scale: as given to `reduce_on_plateau`.
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
        optimizer: any Optax transformation, with its own learning rate or schedule.
        of: "validation" for the metric that `fit` monitors, judged for each run at each evaluation (give `fit` a
            `validation=`); or "training" for the loss of the updates (`optax.contrib.reduce_on_plateau`).
        factor: what each reduction multiplies the updates by.
        patience: evaluations without improvement before a reduction; for "training", windows.
        min_scale: the least product of the factors.
        window: for "training", the number of updates whose mean loss counts as one value.

    Returns:
        A transformation in place of `optimizer`, for `jdl.supervised`.

    Raises:
        ValueError: for a factor outside (0, 1), a patience or window below 1, and an unknown `of`. `fit` raises it if
            validation data is needed and missing.
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
    """Tell every `reduce_on_plateau` optimizer in a state the result of an evaluation, and return the new state.

    Args:
        state: a learner's state, of one run or with a leading axis of runs.
        value: the monitored metric, a scalar or `[runs]`; lower is better.
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
    """Whether a learner's state holds an optimizer that needs the results of evaluations (`observed`)."""
    return any(map(_is_plateau, jax.tree.leaves(state, is_leaf=_is_plateau)))


def _is_plateau(node: Any) -> bool:
    return isinstance(node, PlateauState)
