"""The supervised learner: a Flax model, a loss and an Optax optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jdl.core.accumulators import Mean, Metric
from jdl.core.learner import Batch, Learner, Traits, fold, gradients, step_key
from jdl.core.precision import compute_type
from jdl.core.update import apply_gradients, refusing
from jdl.nn.layers.mode import mode_argument

# Collections that a model writes anew in every call (Flax's `sow`). They are not part of the state.
_SOWN = ("losses", "metrics", "intermediates")


@flax.struct.dataclass
class TrainState:
    """The state of `supervised`: everything that changes while a model trains.

    Under `seeds` and `population` every array has a leading axis of runs.

    Attributes:
        key: the run's typed JAX key; it stays the same, and each update folds in `step`.
        step: scalar int32; updates taken.
        params: the parameters at which gradients are taken; for those to use, call `evaluated_params`.
        collections: Flax's other collections by name, such as `{"batch_stats": {...}}`.
        optimizer: the optimizer's state.
        average: the exponential moving average of the parameters, or None without `average_decay`.
    """

    # Typed as Any, because JAX fills the fields of a pytree with whatever it maps over it.
    key: Any
    step: Any
    params: Any
    collections: Any
    optimizer: Any
    average: Any = None


def supervised(
    model: nn.Module,
    loss: Callable[[Any, Batch], Float[Array, " batch"]],
    optimizer: optax.GradientTransformation,
    *,
    example: Mapping[str, Any],
    metrics: Mapping[str, Callable[[Any, Batch], Metric]] | None = None,
    clip_norm: float | None = None,
    average_decay: float | None = None,
    penalty: Callable[[PyTree], Float[Array, ""]] | None = None,
    rngs: Sequence[str] = ("dropout",),
    variables: Mapping[str, PyTree] | None = None,
    any_length: bool = False,
) -> Learner:
    """Make a learner that fits `model(batch["input"])` to `batch["target"]`. Either may be a pytree of arrays.

    A batch is a dict with `"input"`, usually `"target"`, and optionally `"mask"`, `[batch]`, 0 for padding.

    Args:
        model: a Linen module; wrap an NNX module by `flax.nnx.bridge.to_linen`. If its call has an argument `train` or
            `deterministic`, that is passed. Values that it sows in "losses" (means over the batch) are added to the
            loss; values that it sows in "metrics" become training metrics.
        loss: `(outputs, batch) -> [batch]`, one number per example (`jdl.losses`, or Optax's). The mask is applied
            afterwards.
        optimizer: an Optax transformation (`jdl.optimizers.optimizer`).
        example: a batch, or the whole training part. Every batch must have its arrays (a mask excepted), with the same
            dtypes and, except for the number of examples, the same shapes.
        metrics: functions `(outputs, batch) -> Metric` by name, for training and evaluation (`jdl.metrics`). The loss
            is always measured, as "loss".
        clip_norm: the largest global norm of the gradients; larger ones are scaled down to it.
        average_decay: the decay, in (0, 1), of an exponential moving average of the parameters, which `evaluate` and
            `predict` then use. By default they use `evaluated_params`.
        penalty: `(params) -> scalar` (`jdl.losses.l2`), added to the mean training loss and measured as "penalty".
        rngs: names of the random streams that the model draws from in training.
        variables: trained variables to start from (`jdl.pretrained.load`), such as
            `{"params": {...}, "batch_stats": {...}}`. Those that are missing, such as a new head, are initialized.
        any_length: whether sequences may be longer or shorter than the example's, as in `jdl.Bucketed`. This concerns
            every array whose axis 1 is as long as that of the first input. Each length is compiled once.

    Returns:
        A learner whose state is a `TrainState`.

    Raises:
        ValueError: for an example without `"input"` and for arguments out of range. The learner's functions raise it
            when they are traced, for a batch that differs from the example, a loss that is not `[batch]`, and
            variables that the model does not have.
    """
    if "input" not in example:
        raise ValueError(f'example has no "input" (its keys: {sorted(example)}); give a batch like the training data')
    if average_decay is not None and not 0 < average_decay < 1:
        raise ValueError(f"average_decay={average_decay} is not between 0 and 1; 0.999 averages about 1,000 updates")
    if clip_norm is not None:
        if not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm} is not positive; give the largest global gradient norm allowed")
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    free = np.shape(jax.tree.leaves(example["input"])[0])[1:2] if any_length else ()
    expected = _shapes({name: leaf for name, leaf in example.items() if name != "mask"}, free)
    inputs = _shapes({"input": example["input"]}, free)
    metrics = dict(metrics or {})
    mode = mode_argument(model)

    def init(key: Array) -> TrainState:
        keys = {name: fold(key, name) for name in ("params", *rngs)}
        one = jax.tree.map(lambda leaf: jnp.zeros((1, *np.shape(leaf)[1:]), jnp.result_type(leaf)), example["input"])
        drawn = dict(model.init(keys, one, **mode(False)))
        if variables is not None:
            drawn = _started_from(variables, drawn)
        params = drawn.pop("params", {})
        collections = {name: value for name, value in drawn.items() if name not in _SOWN}
        average = None if average_decay is None else params
        with refusing():
            opt_state = optimizer.init(params)
        return TrainState(key, jnp.zeros((), jnp.int32), params, collections, opt_state, average)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Metric]]:
        check_batch(batch, expected)

        def summed(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array, PyTree]:
            variables = {"params": params, **state.collections}
            outputs, changed = model.apply(
                variables,
                compute_type(batch["input"]),
                mutable=[*state.collections, *_SOWN],
                rngs={name: fold(key, name) for name in rngs},
                **mode(True),
            )
            outputs = jax.tree.map(_at_least_single, outputs)
            losses, weights = per_example(loss, outputs, batch)
            weight = weights.sum()
            total = jnp.where(weights > 0, losses, 0).sum()
            total += weight * sum((jnp.sum(leaf) for leaf in jax.tree.leaves(changed.get("losses", {}))), 0.0)
            # Cast back: Flax promotes running statistics to wider types, and a state must keep its types.
            kept = {name: changed.get(name, value) for name, value in state.collections.items()}
            collections = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), kept, dict(state.collections))
            measured = {name: metric(outputs, batch) for name, metric in metrics.items()}
            if penalty is not None:
                charged = weight * _penalty(penalty, params)
                total, measured["penalty"] = total + charged, Mean(charged, weight)
            return total, weight, (collections, measured | _sown_metrics(changed, weight))

        key = step_key(state)
        grads, mean, (collections, measured) = gradients(summed, state.params, batch, key)
        params, optimizer_state = apply_gradients(
            optimizer, grads, state.optimizer, state.params, mean, summed, batch, key
        )
        average = state.average
        if average_decay is not None:
            average = optax.incremental_update(_arrived_at(params, optimizer_state), average, 1 - average_decay)
        state = TrainState(state.key, state.step + 1, params, collections, optimizer_state, average)
        return state, {"loss": mean, **measured}

    def predict(state: TrainState, batch: Batch) -> Any:
        given = batch["input"] if isinstance(batch, Mapping) and "input" in batch else batch
        check_batch({"input": given}, inputs)
        return model.apply({"params": evaluated_params(state), **state.collections}, given, **mode(False))

    def evaluate(state: TrainState, batch: Batch) -> dict[str, Metric]:
        check_batch(batch, expected)
        outputs = predict(state, batch)
        losses, weights = per_example(loss, outputs, batch)
        mean = Mean(jnp.where(weights > 0, losses, 0).sum(), weights.sum())
        return {"loss": mean, **{name: metric(outputs, batch) for name, metric in metrics.items()}}

    def check(data: Batch) -> None:
        judge = getattr(model, "check_inputs", None)
        if judge is not None and "input" in data:
            judge(data["input"])

    shapes = jax.eval_shape(lambda batch: batch, dict(example))
    return Learner(init, step, evaluate, predict, check=check, traits=Traits(example=shapes))


def evaluated_params(state: TrainState) -> PyTree:
    """Return the parameters to evaluate, decode with or export, which may differ from `state.params`.

    These are the moving average, if there is one; the averaged parameters of a schedule-free optimizer; those of SAM
    without the climb; otherwise `state.params`.

    Args:
        state: a state of one run.
    """
    return _arrived_at(state.params, state.optimizer) if state.average is None else state.average


def _arrived_at(params: PyTree, optimizer_state: PyTree) -> PyTree:
    schedule_free = optax.tree.get(optimizer_state, "ScheduleFreeState")
    if schedule_free is not None:
        return optax.tree.cast_like(optax.contrib.schedule_free_eval_params(schedule_free, params), params)
    sam = optax.tree.get(optimizer_state, "SAMState")
    if sam is not None:  # before the last step of a period the parameters climb, and the cache holds those from before
        return jax.tree.map(lambda own, kept: jnp.where(sam.steps_since_sync == 0, own, kept), params, sam.cache)
    return params


def _penalty(penalty: Callable[[PyTree], Array], params: PyTree) -> Array:
    charged = jnp.asarray(penalty(params))
    if charged.shape != ():
        raise ValueError(f"penalty= returned shape {charged.shape}; it must return one number: sum over the parameters")
    return charged


def _at_least_single(outputs: Array) -> Array:
    """Cast a network's half-precision outputs to float32, in which losses are summed."""
    return outputs.astype(jnp.float32) if outputs.dtype in (jnp.bfloat16, jnp.float16) else outputs


def _started_from(given: Mapping[str, PyTree], drawn: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Replace drawn variables by those that are given."""
    ours: dict[str, Any] = flax.traverse_util.flatten_dict(dict(drawn), sep="/")
    theirs: dict[str, Any] = flax.traverse_util.flatten_dict(dict(given), sep="/")
    strange = [
        f"{path} {np.shape(leaf)}" + (f", the model has {ours[path].shape}" if path in ours else "")
        for path, leaf in theirs.items()
        if path not in ours or ours[path].shape != np.shape(leaf)
    ]
    if strange:
        raise ValueError(
            "variables= are not those of this model, which has no such parameters:\n  " + "\n  ".join(strange)
        )
    # Fetch them when the program runs: as constants they would be compiled into it.
    arrays = {path: np.asarray(leaf, ours[path].dtype) for path, leaf in theirs.items()}
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in arrays.items()}
    fetched = jax.pure_callback(lambda: arrays, shapes, vmap_method="broadcast_all")
    return flax.traverse_util.unflatten_dict({**ours, **fetched}, sep="/")


def per_example(loss: Callable, outputs: Any, batch: Batch) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Compute the loss of each example and its weight.

    Args:
        loss: `(outputs, batch) -> [batch]`.
        outputs: the outputs of a network.
        batch: a batch with `"input"`, and optionally `"mask"`, `[batch]`.

    Returns:
        The losses `[batch]`, which may be NaN for padding, and the weights `[batch]`, 1, or 0 for padding.

    Raises:
        ValueError: for a loss or a mask of another shape.
    """
    losses = loss(outputs, batch)
    examples = len(jax.tree.leaves(batch["input"])[0])
    if jnp.shape(losses) != (examples,):
        shapes = jax.tree.map(jnp.shape, outputs)
        raise ValueError(
            f"the loss has shape {jnp.shape(losses)} for {examples} examples (outputs {shapes}, "
            f"target {jnp.shape(batch.get('target'))}); it must return one number per example, shape ({examples},): "
            "average over the other axes, and make outputs and target agree"
        )
    mask = batch.get("mask")
    if mask is None:
        return losses, jnp.ones_like(losses)
    if jnp.shape(mask) != (examples,):
        shape = jnp.shape(mask)
        raise ValueError(f'batch["mask"] has shape {shape}; it is one number per example, shape ({examples},)')
    return losses, (jnp.asarray(mask) > 0).astype(losses.dtype)


class _Shape(NamedTuple):
    """The shape and type of one example in one array of a batch."""

    shape: tuple[int | str, ...]  # "any" for an axis of any length
    dtype: Any

    def admits(self, shape: tuple[int | str, ...]) -> bool:
        sizes = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(due in (size, "any") for due, size in sizes)


def _shapes(batch: Any, free: tuple[int, ...] = ()) -> dict[str, _Shape]:
    """Return the shapes by path, such as "['input']['ids']". `free` holds a length that batches may change, or none."""
    found = {}
    for path, leaf in _flatten(batch):
        shape = np.shape(leaf)[1:]
        shape = ("any", *shape[1:]) if free and shape[:1] == free else shape
        found[jax.tree_util.keystr(path)] = _Shape(shape, jnp.result_type(leaf))
    return found


def check_batch(batch: Any, expected: Mapping[str, _Shape]) -> None:
    """Check a batch against the shapes and types that a learner was made for.

    Args:
        batch: a dict of arrays with a leading axis of examples.
        expected: the shape and type of one example for each array, by path.

    Raises:
        ValueError: for a batch that is not a dict, lacks an array, or has another shape or type; the message names the
            array and the remedy. Further arrays are allowed.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(f"a batch is a dict like the learner's example, this one is a {type(batch).__name__}")
    found = _shapes(batch)
    lengths = {
        name: found[name].shape[0]
        for name, due in expected.items()
        if "any" in due.shape and name in found and found[name].shape
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the sequences of a batch have one length, these have {lengths}: pad them to the longest")
    for name, due in expected.items():
        if name not in found:
            raise ValueError(f"batch{name} is missing (there are {', '.join(found)}); the learner's example had one")
        if not due.admits(found[name].shape):
            raise ValueError(
                f"batch{name} has shape {('batch', *found[name].shape)}, the learner was made for "
                f"{('batch', *due.shape)}; reshape the data, or make the learner with an example of this shape"
            )
        if found[name].dtype != due.dtype:
            raise ValueError(
                f"batch{name} has type {found[name].dtype}, the learner was made for {due.dtype}; "
                f"convert it with .astype({str(due.dtype)!r}), or make the learner with an example of this type"
            )


def _flatten(tree: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _sown_metrics(changed: Mapping[str, PyTree], weight: Array) -> dict[str, Metric]:
    sown = jax.tree_util.tree_flatten_with_path(changed.get("metrics", {}), is_leaf=lambda x: isinstance(x, tuple))[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): values for path, values in sown}
    return {name: Mean(weight * sum(values) / len(values), weight) for name, values in named.items()}
