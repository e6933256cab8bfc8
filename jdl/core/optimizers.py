"""Optimizers and learning-rate schedules by name, so that a config can hold them. All of it is Optax's own.

rate = schedule("cosine", 1e-3, steps=10_000, warmup=0.05)
learner = supervised(model, loss, optimizer("adamw", rate, weight_decay=0.01), example=...)
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

# The kernels of hidden layers: those of the last layer (jdl.nn calls it so) are Adam's, as embeddings are.
_HIDDEN = r"^(?!.*(head|logits)/).*kernel$"


def optimizer(
    name: str,
    learning_rate: Rate,
    *,
    weight_decay: Number = 0.0,
    decayed: str | Sequence[str] = "kernel$",
    **options: Any,
) -> optax.GradientTransformation:
    """The Optax optimizer of that name; `options` are its own, such as `b2` of Adam's family.

    - "sgd", "momentum" and "nesterov" (0.9, or the option `momentum`), "rmsprop", "adam"
    - "adamw", "lion": weight decay apart from the gradient (Loshchilov and Hutter 2019; Chen et al. 2023)
    - "muon": the matrices whose path matches the option `hidden` by Muon, the rest by Adam, both at this learning rate
      unless `adam_learning_rate` is given (Jordan 2024). By default these are the kernels, but those of layers called
      "head" or "logits"; a last layer of another name is to be left out by a pattern of yours.
    - "schedule_free": AdamW whose averaging replaces the schedule (Defazio et al. 2024); give at most a warm-up. The
      parameters in the state are those that gradients are taken at, `jdl.supervised` evaluates the averaged ones.
    - "sam": sharpness-aware minimization (Foret et al. 2021) around the optimizer `base` ("momentum"), which takes
      the remaining options. Of `sync_period` (2) steps all but the last climb by `rho` (0.05) to where the loss is
      high, and the last updates with the gradient found there: an update costs `sync_period` steps, each on a batch of
      its own, and a schedule counts updates. Metrics of training are in part the climber's, `jdl.supervised`
      evaluates what the updates have arrived at; batch statistics see both.

    learning_rate: a number, a traced scalar (`jdl.population`) or a schedule.
    weight_decay: for each update, times the learning rate, of the parameters whose path matches `decayed`. The
    optimizers without it raise ValueError: there the penalty `jdl.losses.l2` is meant. So do an unknown name or option,
    and a negative rate.
    """
    _check_not_negative("learning_rate", learning_rate)
    _check_not_negative("weight_decay", weight_decay)
    patterns = (decayed,) if isinstance(decayed, str) else tuple(decayed)
    without = isinstance(weight_decay, int | float) and weight_decay == 0
    return _named(name, learning_rate, weight_decay, None if without else by_path(*patterns), options)


def schedule(name: str, peak: Number, steps: int, *, warmup: int | float = 0, end: int | float = 0.0) -> optax.Schedule:
    """The learning rate over `steps` updates: a linear warm-up from zero to `peak`, then the shape of that name.

    - "constant"; "linear" and "cosine", which fall to `end` (Loshchilov and Hutter 2017)
    - "inverse_sqrt": falls with the root of the updates made (Vaswani et al. 2017, section 5.3); needs a warm-up
    - "one_cycle": rises and falls along cosines, from a 25th of the peak to `end` (Smith and Topin 2018); its
      warm-up, the rise, takes three tenths of the steps where none is given

    peak: a number or a traced scalar. warmup: a number of updates, or below 1 a fraction of them.
    end: the last value as a share of the peak, for the shapes that fall to one.
    Raises ValueError for an unknown name, a warm-up that leaves no steps, an end outside 0 to 1.
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
    # Half a step more, since Optax rounds the product with the steps down.
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
    # Decay afterwards, since Optax's own for the part that is Adam's knows no mask.
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
    """Optax's `schedule_free_adamw`, which has no mask: AdamW without its first moment, averaged."""
    base = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    # As a schedule, since Optax casts what that gives, and no number, to the type of its state.
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


# Arguments that `optimizer` gives itself.
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
    """The options, known to be this optimizer's; one that passes on what it doesn't know has that checked there."""
    parameters = inspect.signature(make).parameters
    taken = [each for each in parameters if each not in _OWN]
    strange = sorted(set(options) - set(taken))
    if strange and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise ValueError(f"optimizer({name!r}) has no option {', '.join(strange)}; it takes {', '.join(taken)}")
    return options


def _check_not_negative(name: str, value: Any) -> None:
    if callable(value) or isinstance(value, Tracer):
        return  # not known before the program runs
    if not value >= 0:
        raise ValueError(f"{name}={value} is not a number from 0 up")
