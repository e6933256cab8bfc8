"""One update by any of Optax's transformations, whatever more than gradients it wants."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree

from jdl.core.learner import Batch, Loss, gradients, value
from jdl.core.metrics import Mean

# Transformations that cannot serve in a learner, by what their error says.
_REFUSED = {
    "has no attribute 'fast'": (
        "optax.lookahead keeps two sets of parameters, and a learner one: use supervised(average_decay=...), or "
        'jdl.optimizers.optimizer("schedule_free", ...)'
    ),
    "expects `grads` to have a batch dimension": (
        "it wants the gradients of each example, and a learner has those of the mean: differentially private training "
        "needs a learner of its own"
    ),
    "has a subtree of different type": (
        'it takes matrices alone: give it to those by optax.partition, as jdl.optimizers.optimizer("muon", ...) does'
    ),
}


def apply_gradients(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    opt_state: Any,
    params: PyTree,
    mean: Mean,
    loss: Loss,
    batch: Batch,
    key: Array,
) -> tuple[PyTree, Any]:
    """The parameters and the optimizer's state after an update.

    Some transformations of Optax take extra arguments: the loss (`reduce_on_plateau`, Polyak steps, MoMo), a function
    that computes it again (line searches, L-BFGS, Sophia), or its gradients at other parameters (SAM in its opaque
    mode). They get them from the same batch and key, through the same seam.

    Args:
        optimizer: any transformation of Optax.
        grads, mean: what `gradients(loss, params, batch, key)` returned.
        opt_state, params: as they are before the update.
        loss, batch, key: what `gradients` was given.

    Raises:
        ValueError: for a transformation that cannot serve in a learner, with what can.
    """

    def value_of(params: PyTree, obj_fn: Any = None, grad_fn: Any = None) -> Array:  # line searches pass these on
        return value(loss, params, batch, key)

    extra = {
        "value": mean.compute(),
        "grad": grads,
        "value_fn": value_of,
        "obj_fn": value_of,
        "grad_fn": lambda params, index: gradients(loss, params, batch, jax.random.fold_in(key, index))[0],
    }
    with refusing():
        try:
            updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, opt_state, params, **extra)
        except TypeError as error:  # optax.contrib.sam, also within a chain, takes one of these and no others
            if "unexpected keyword argument" not in str(error):
                raise
            only = {"grad_fn": extra["grad_fn"]} if "opaque" in str(error) else {}
            updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, opt_state, params, **only)
    return optax.apply_updates(params, updates), opt_state


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Name the remedy where a transformation of Optax fails for what it is."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        for text, remedy in _REFUSED.items():
            if text in str(error):
                raise ValueError(f"this optimizer cannot serve in a learner: {remedy}") from error
        raise
