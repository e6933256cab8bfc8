"""The supervised learner: a Flax model, a loss and an Optax optimiser."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jdl.learner import Batch, Learner, fold, gradients, step_key
from jdl.metrics import Mean, Metric

# Written anew by every call of a model, so no part of the state: losses and metrics that a model sows are read.
_SOWN = ("losses", "metrics", "intermediates")


@flax.struct.dataclass
class TrainState:
    """Everything that changes while a model trains."""

    key: Any  # typed as Any, each of them: JAX fills a pytree's fields with whatever it maps over it
    step: Any
    params: Any
    collections: Any  # Flax's mutable collections, such as batch statistics
    optimizer: Any
    average: Any = None  # exponential moving average of the parameters, where asked for


def supervised(
    model: nn.Module,
    loss: Callable[[Any, Batch], Float[Array, " batch"]],
    optimizer: optax.GradientTransformation,
    *,
    example: Mapping[str, Any],
    metrics: Mapping[str, Callable[[Any, Batch], Metric]] | None = None,
    clip_norm: float | None = None,
    average_decay: float | None = None,
    rngs: Sequence[str] = ("dropout",),
) -> Learner:
    """A learner that fits `model(batch["input"])` to `batch["target"]`; either may be a pytree of arrays.

    model: a Linen module (an NNX one through `flax.nnx.bridge.to_linen`); a `train` or `deterministic` argument
    of its call is passed. What it sows in "losses" (means over the batch) is added to the loss, what it sows in
    "metrics" is reported.
    loss: `(outputs, batch) -> [batch]`, one loss an example, as Optax's losses give; `batch["mask"]` is applied here.
    example: a batch, or the whole training part; its shapes and types are what every batch is held against.
    metrics: `(outputs, batch) -> Metric` by name, for training and evaluation (`jdl.metrics`).
    clip_norm: clip the gradients by their global norm. average_decay: keep an exponential moving average of the
    parameters, which `evaluate` and `predict` use. Weight decay by parameter: `optax.adamw(mask=jdl.by_path(...))`.
    Raises ValueError, before anything is compiled, for a batch that differs from the example.
    """
    if "input" not in example:
        raise ValueError(f'example has no "input" (its keys: {sorted(example)}); give a batch like the training data')
    if average_decay is not None and not 0 < average_decay < 1:
        raise ValueError(f"average_decay={average_decay} is not between 0 and 1; 0.999 averages about 1,000 updates")
    if clip_norm is not None:
        if not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm} is not positive; give the largest global gradient norm allowed")
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    expected = _shapes({name: leaf for name, leaf in example.items() if name != "mask"})
    inputs = _shapes({"input": example["input"]})
    metrics = dict(metrics or {})
    mode = _mode_argument(model)

    def init(key: Array) -> TrainState:
        keys = {name: fold(key, name) for name in ("params", *rngs)}
        one = jax.tree.map(lambda leaf: jnp.zeros((1, *np.shape(leaf)[1:]), jnp.result_type(leaf)), example["input"])
        variables = dict(model.init(keys, one, **mode(False)))
        params = variables.pop("params", {})
        collections = {name: value for name, value in variables.items() if name not in _SOWN}
        average = None if average_decay is None else params
        return TrainState(key, jnp.zeros((), jnp.int32), params, collections, optimizer.init(params), average)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Metric]]:
        check_batch(batch, expected)

        def summed(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array, PyTree]:
            variables = {"params": params, **state.collections}
            outputs, changed = model.apply(
                variables,
                batch["input"],
                mutable=[*state.collections, *_SOWN],
                rngs={name: fold(key, name) for name in rngs},
                **mode(True),
            )
            losses, weights = per_example(loss, outputs, batch)
            weight = weights.sum()
            total = jnp.where(weights > 0, losses, 0).sum()
            total += weight * sum((jnp.sum(leaf) for leaf in jax.tree.leaves(changed.get("losses", {}))), 0.0)
            # In the types they had: Flax promotes running statistics, and a state keeps its types.
            kept = {name: changed.get(name, value) for name, value in state.collections.items()}
            collections = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), kept, dict(state.collections))
            measured = {name: metric(outputs, batch) for name, metric in metrics.items()}
            return total, weight, (collections, measured | _sown_metrics(changed, weight))

        grads, mean, (collections, measured) = gradients(summed, state.params, batch, step_key(state))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average_decay is not None:
            average = optax.incremental_update(params, average, 1 - average_decay)
        state = TrainState(state.key, state.step + 1, params, collections, optimizer_state, average)
        return state, {"loss": mean, **measured}

    def predict(state: TrainState, batch: Batch) -> Any:
        params = state.params if state.average is None else state.average
        given = batch["input"] if isinstance(batch, Mapping) and "input" in batch else batch
        check_batch({"input": given}, inputs)
        return model.apply({"params": params, **state.collections}, given, **mode(False))

    def evaluate(state: TrainState, batch: Batch) -> dict[str, Metric]:
        check_batch(batch, expected)
        outputs = predict(state, batch)
        losses, weights = per_example(loss, outputs, batch)
        mean = Mean(jnp.where(weights > 0, losses, 0).sum(), weights.sum())
        return {"loss": mean, **{name: metric(outputs, batch) for name, metric in metrics.items()}}

    return Learner(init, step, evaluate, predict)


def per_example(loss: Callable, outputs: Any, batch: Batch) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """The loss of each example and its weight: 1, or 0 where the mask is; a loss of another shape is an error."""
    losses = loss(outputs, batch)
    examples = len(jax.tree.leaves(batch["input"])[0])
    if jnp.shape(losses) != (examples,):
        shapes = jax.tree.map(jnp.shape, outputs)
        raise ValueError(
            f"the loss has shape {jnp.shape(losses)} for {examples} examples (outputs {shapes}, "
            f"target {jnp.shape(batch.get('target'))}); it must return one number an example, shape ({examples},): "
            "average over the other axes, and make outputs and target agree"
        )
    mask = batch.get("mask")
    if mask is None:
        return losses, jnp.ones_like(losses)
    if jnp.shape(mask) != (examples,):
        raise ValueError(f'batch["mask"] has shape {jnp.shape(mask)}; it is one number an example, shape ({examples},)')
    return losses, (jnp.asarray(mask) > 0).astype(losses.dtype)


class _Shape(NamedTuple):
    """Of one example, in one array of a batch."""

    shape: tuple[int, ...]
    dtype: Any


def _shapes(batch: Any) -> dict[str, _Shape]:
    """By path: "['input']", "['input']['ids']"."""
    return {
        jax.tree_util.keystr(path): _Shape(np.shape(leaf)[1:], jnp.result_type(leaf)) for path, leaf in _flatten(batch)
    }


def check_batch(batch: Any, expected: Mapping[str, _Shape]) -> None:
    """Hold a batch against the shapes and types a learner was made for; raises ValueError naming the difference."""
    if not isinstance(batch, Mapping):
        raise ValueError(f"a batch is a dict like the learner's example, this one is a {type(batch).__name__}")
    found = _shapes(batch)
    for name, (shape, dtype) in expected.items():
        if name not in found:
            raise ValueError(f"batch{name} is missing (there are {', '.join(found)}); the learner's example had one")
        if found[name].shape != shape:
            raise ValueError(
                f"batch{name} has shape {('batch', *found[name].shape)}, the learner was made for "
                f"{('batch', *shape)}; reshape the data, or make the learner with an example of this shape"
            )
        if found[name].dtype != dtype:
            raise ValueError(
                f"batch{name} has type {found[name].dtype}, the learner was made for {dtype}; "
                f"convert it with .astype({str(dtype)!r}), or make the learner with an example of this type"
            )


def by_path(*patterns: str) -> Callable[[PyTree], PyTree]:
    """A mask for Optax: true for the parameters whose path matches a pattern.

    >>> mask = by_path("kernel$")  # optax.adamw(1e-3, mask=by_path("kernel$")) decays kernels alone
    >>> mask({"Dense_0": {"kernel": 1.0, "bias": 0.0}})
    {'Dense_0': {'bias': False, 'kernel': True}}

    patterns: regular expressions, searched for in "Dense_0/kernel" and the like. Raises ValueError for a pattern
    that matches nothing.
    """
    import re

    def mask(params: PyTree) -> PyTree:
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _flatten(params)]
        for pattern in patterns:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(f"the pattern {pattern!r} matches no parameter; there are {', '.join(paths)}")
        matched = [any(re.search(pattern, path) for pattern in patterns) for path in paths]
        return jax.tree.unflatten(jax.tree.structure(params), matched)

    return mask


def _flatten(tree: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _mode_argument(model: nn.Module) -> Callable[[bool], dict[str, Any]]:
    """How this model is told that it trains: `train=`, `deterministic=`, or not at all."""
    wrapped = getattr(model, "nnx_class", type(model))  # what the bridge from NNX passes its arguments on to
    parameters = inspect.signature(wrapped.__call__).parameters
    if "train" in parameters:
        return lambda train: {"train": train}
    if "deterministic" in parameters:
        return lambda train: {"deterministic": not train}
    return lambda train: {}


def _sown_metrics(changed: Mapping[str, PyTree], weight: Array) -> dict[str, Metric]:
    sown = jax.tree_util.tree_flatten_with_path(changed.get("metrics", {}), is_leaf=lambda x: isinstance(x, tuple))[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): values for path, values in sown}
    return {name: Mean(weight * sum(values) / len(values), weight) for name, values in named.items()}
