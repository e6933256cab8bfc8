"""One update by any Optax transformation, including those that need more than gradients."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jaxtyping import Array, PyTree

from jdl.core.accumulators import Mean
from jdl.core.learner import Batch, Loss, gradients, value

# Messages of Optax's errors that mean that a transformation cannot serve in a learner, and what to tell the user.
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
    """Update parameters by an optimizer.

    Some Optax transformations take extra arguments: the loss (`reduce_on_plateau`, Polyak steps, MoMo), a function
    that computes the loss again (line searches, L-BFGS, Sophia), or its gradients at other parameters (SAM in its
    opaque mode). They are computed from the same batch and key, under the same transforms.

    Args:
        optimizer: any Optax transformation.
        grads: the gradients that `gradients(loss, params, batch, key)` returned.
        opt_state: the optimizer's state before the update.
        params: the parameters before the update.
        mean: the mean loss that `gradients` returned.
        loss: as `gradients` was given it.
        batch: as `gradients` was given it.
        key: as `gradients` was given it.

    Returns:
        The new parameters and the optimizer's new state.

    Raises:
        ValueError: for a transformation that cannot serve in a learner; the message names one that can.
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
    """Raise ValueError with a remedy if an Optax transformation in this context fails in a learner by its nature."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        for text, remedy in _REFUSED.items():
            if text in str(error):
                raise ValueError(f"this optimizer cannot serve in a learner: {remedy}") from error
        raise
