"""Optax's optimizers and learning-rate schedules by name, so that a config can hold them.

    rate = schedule("cosine", 1e-3, steps=10_000, warmup=0.05)
    learner = supervised(model, loss, optimizer("adamw", rate, weight_decay=0.01), example=...)

By default weight decay applies to kernels only.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jdl.core.paths import by_path
from jdl.core.plateau import reduce_on_plateau as reduce_on_plateau

Number = int | float | Array
Rate = int | float | Array | optax.Schedule
Mask = Callable[[PyTree], PyTree]

# The kernels of all layers except the last, which jdl.nn calls "head" or "logits" and Muon leaves to Adam.
_HIDDEN = r"^(?!.*(head|logits)/).*kernel$"


def optimizer(
    name: str,
    learning_rate: Rate,
    *,
    weight_decay: Number = 0.0,
    decayed: str | Sequence[str] = "kernel$",
    **options: Any,
) -> optax.GradientTransformation:
    """Make the Optax optimizer of that name.

    - `"sgd"`, `"momentum"`, `"nesterov"`, `"rmsprop"`, `"adam"`: without weight decay. "momentum" and "nesterov" have
      a momentum of 0.9 unless the option `momentum` is given.
    - `"adamw"`, `"lion"`: with decoupled weight decay (Loshchilov and Hutter 2019; Chen et al. 2023).
    - `"muon"` (Jordan 2024): Muon for the matrices whose path matches the option `hidden`, Adam for the rest, both at
      this learning rate unless `adam_learning_rate` is given. By default `hidden` matches all kernels except those of
      layers called "head" or "logits". If the last layer has another name, exclude it with a pattern of your own.
    - `"schedule_free"` (Defazio et al. 2024): AdamW with averaged parameters in place of a schedule; the learning rate
      may have a warm-up. Gradients are taken at the parameters in the state, and `jdl.supervised` evaluates the
      averaged ones.
    - `"sam"` (Foret et al. 2021): sharpness-aware minimization around the optimizer `base` ("momentum"), which takes
      the remaining options. Of every `sync_period` steps (2), all except the last climb by `rho` (0.05) to parameters
      with a high loss, and the last step makes an update with the gradient found there. Each of these steps takes a
      batch of its own; a schedule counts updates. Training metrics and batch statistics include the climbing steps;
      `jdl.supervised` evaluates the parameters after the last update.

    Args:
        name: one of the names above.
        learning_rate: a number, a traced scalar (`jdl.population`) or a schedule.
        weight_decay: the coefficient of decoupled weight decay: each update subtracts learning_rate · weight_decay · w.
        decayed: regular expressions for the paths of the parameters that decay, as in `jdl.by_path`; by default those
            that end in "kernel".
        options: further arguments of the Optax function, such as `b2`.

    Raises:
        ValueError: for an unknown name or option, a negative number, and weight decay for an optimizer without it (use
            the penalty `jdl.losses.l2`). `init` raises it for a pattern in `decayed` that matches no parameter, and
            for "muon" without a matrix that matches `hidden`.
    """
    _check_not_negative("learning_rate", learning_rate)
    _check_not_negative("weight_decay", weight_decay)
    patterns = (decayed,) if isinstance(decayed, str) else tuple(decayed)
    without = isinstance(weight_decay, int | float) and weight_decay == 0
    return _named(name, learning_rate, weight_decay, None if without else by_path(*patterns), options)


def schedule(name: str, peak: Number, steps: int, *, warmup: int | float = 0, end: int | float = 0.0) -> optax.Schedule:
    """Make a learning-rate schedule: a linear warm-up from 0 to `peak`, then the shape of that name.

    With T steps, w of them warm-up, and the share s = (t − w) / (T − w) of the rest, the rate at update t ≥ w is

    - `"constant"`: peak
    - `"linear"`: peak · (1 − (1 − end) s)
    - `"cosine"`: peak · (end + (1 − end) (1 + cos πs) / 2) (Loshchilov and Hutter 2017)
    - `"inverse_sqrt"`: peak · √(w / t) (Vaswani et al. 2017, section 5.3); needs a warm-up
    - `"one_cycle"`: along a cosine, which also replaces the linear warm-up: from peak / 25 to the peak, then to
      end · peak (Smith and Topin 2018)

    Args:
        name: one of the names above.
        peak: the largest rate, a number or a traced scalar (`jdl.population`).
        steps: T, the updates of the whole training.
        warmup: w, a number of updates, or a fraction of `steps` if it is below 1. By default there is none, except for
            "one_cycle", which takes 0.3.
        end: the last rate as a fraction of the peak, for "linear", "cosine" and "one_cycle".

    Returns:
        A function from the number of updates made to the learning rate.

    Raises:
        ValueError: for an unknown name, a negative peak, less than 1 step, a warm-up that leaves no step after it, an
            end outside [0, 1], and "inverse_sqrt" without a warm-up.
    """
    _check_not_negative("peak", peak)
    if steps < 1:
        raise ValueError(f"schedule(steps={steps}): give the number of updates, at least 1")
    if not 0 <= end <= 1:
        raise ValueError(f"schedule(end={end}): the last value is a share of the peak, between 0 and 1")
    if name == "one_cycle":
        warmup = warmup or 0.3
    rise = round(warmup * steps) if 0 < warmup < 1 else int(warmup)
    if warmup < 0 or (warmup >= 1 and rise != warmup) or rise >= steps:
        raise ValueError(
            f"schedule(warmup={warmup}, steps={steps}): the warm-up is a number of updates below steps, "
            "or a fraction below 1 that leaves at least one"
        )
    shapes = {
        "constant": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, end, steps - rise),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, steps - rise, alpha=end),
        "inverse_sqrt": lambda: lambda count: jnp.sqrt(rise / (rise + jnp.maximum(count, 0))),
        "one_cycle": lambda: _one_cycle(rise, steps, end),
    }
    if name not in shapes:
        raise ValueError(f"there is no schedule {name!r}; choose one of {', '.join(shapes)}")
    if name == "inverse_sqrt" and rise == 0:
        raise ValueError(f'schedule("inverse_sqrt", warmup={warmup}): it falls from the end of a warm-up; give one')
    share = shapes[name]()
    if rise and name != "one_cycle":
        share = optax.join_schedules([optax.linear_schedule(0.0, 1.0, rise), share], [rise])
    return lambda count: peak * share(count)


def _one_cycle(rise: int, steps: int, end: int | float) -> optax.Schedule:
    if rise == 0:
        raise ValueError(f'schedule("one_cycle", steps={steps}): the rise has no step; give more steps or a warm-up')
    # Half a step more, because Optax multiplies the fraction by the steps and rounds down.
    return optax.cosine_onecycle_schedule(
        steps, 1.0, (rise + 0.5) / steps, div_factor=25.0, final_div_factor=1 / (25.0 * end) if end else float("inf")
    )


def _named(
    name: str, learning_rate: Rate, weight_decay: Number, mask: Mask | None, options: Mapping[str, Any]
) -> optax.GradientTransformation:
    if name in _DECAYING:
        make = partial(_DECAYING[name], learning_rate, weight_decay=weight_decay, mask=mask)
    elif name in _PLAIN:
        if mask is not None:
            raise ValueError(
                f"optimizer({name!r}, weight_decay={weight_decay}): it has no decay apart from the gradient; choose "
                f"one of {', '.join(_DECAYING)}, or give jdl.supervised a penalty= of jdl.losses.l2"
            )
        make = partial(_PLAIN[name], learning_rate)
    else:
        raise ValueError(f"there is no optimizer {name!r}; choose one of {', '.join(_PLAIN | _DECAYING)}")
    return make(**_checked(name, make, options))


def _muon(
    learning_rate: Rate, weight_decay: Number, mask: Mask | None, hidden: str = _HIDDEN, **options: Any
) -> optax.GradientTransformation:
    def dimensions(params: PyTree) -> PyTree:
        by_muon = jax.tree.map(lambda leaf, matched: matched and leaf.ndim == 2, params, by_path(hidden)(params))
        if not any(jax.tree.leaves(by_muon)):
            raise ValueError(f'optimizer("muon", hidden={hidden!r}): no matrix matches; use "adamw" for this model')
        return jax.tree.map(lambda chosen: optax.contrib.MuonDimensionNumbers() if chosen else None, by_muon)

    plain = partial(optax.contrib.muon, learning_rate, muon_weight_dimension_numbers=dimensions)
    muon = plain(**_checked("muon", plain, options))
    if mask is None:
        return muon
    # Decay in a transformation of its own, because Optax's Muon takes no mask for the part that is Adam's.
    if callable(learning_rate):
        return optax.chain(muon, optax.add_decayed_weights(lambda count: -weight_decay * learning_rate(count), mask))
    return optax.chain(muon, optax.add_decayed_weights(-weight_decay * learning_rate, mask))


def _schedule_free(
    learning_rate: Rate,
    weight_decay: Number,
    mask: Mask | None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_lr_power: float = 2.0,
) -> optax.GradientTransformation:
    """Rebuild Optax's `schedule_free_adamw`, which has no mask: AdamW without its first moment, averaged."""
    base = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    # As a schedule, because Optax casts the value of a schedule, but not a number, to the type of its state.
    rate = learning_rate if callable(learning_rate) else lambda count: learning_rate
    return optax.contrib.schedule_free(base, rate, b1, weight_lr_power)


def _sam(
    learning_rate: Rate,
    weight_decay: Number,
    mask: Mask | None,
    base: str = "momentum",
    rho: Number = 0.05,
    sync_period: int = 2,
    **options: Any,
) -> optax.GradientTransformation:
    if sync_period < 2:
        raise ValueError(f'optimizer("sam", sync_period={sync_period}): give at least 2 steps, one of them a climb')
    _check_not_negative("rho", rho)
    # Not optax.contrib.normalize, which makes NaN of a zero gradient.
    climb = optax.chain(optax.normalize_by_update_norm(), optax.sgd(rho))
    return optax.contrib.sam(_named(base, learning_rate, weight_decay, mask, options), climb, sync_period)


# Arguments that `optimizer` passes, so that users cannot give them as options.
_OWN = {"learning_rate", "weight_decay", "mask", "weight_decay_mask", "muon_weight_dimension_numbers"}
_PLAIN: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "nesterov": partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
}
_DECAYING: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "lion": optax.lion,
    "muon": _muon,
    "schedule_free": _schedule_free,
    "sam": _sam,
}


def _checked(name: str, make: Callable, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options if the optimizer has them. One that passes options on leaves the check to the inner one."""
    parameters = inspect.signature(make).parameters
    taken = [each for each in parameters if each not in _OWN]
    strange = sorted(set(options) - set(taken))
    if strange and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise ValueError(f"optimizer({name!r}) has no option {', '.join(strange)}; it takes {', '.join(taken)}")
    return options


def _check_not_negative(name: str, value: Any) -> None:
    if callable(value) or isinstance(value, Tracer):
        return  # the value is known only when the program runs
    if not value >= 0:
        raise ValueError(f"{name}={value} is not a number from 0 up")
