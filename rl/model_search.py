"""Gumbel search through a learned model, by mctx (`pip install 'jdl[search]'`), for one player.

`rl.search` has the searches of games, whose rules are known.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rl.envs.libraries import imported
from rl.learned_model import LearnedModel, applied
from rl.search import Searched, masked
from rl.two_hot import TwoHot


def model_search(
    model: LearnedModel,
    numbers: TwoHot,
    params: PyTree,
    key: Array,
    state: Float[Array, "env width"],
    allowed: Array | None,
    *,
    discount: float,
    simulations: int,
    considered: int,
    least_range: float | Array = 1e-8,
    gumbel_scale: float = 1.0,
) -> Searched:
    """Search from the states of a model; values are scaled to [0, 1] among the actions of each node.

    What is allowed is known at the first state alone; deeper, every action is. The model does not say where episodes
    end: it learns that rewards and values are 0 from there on.

    Args:
        model: the network.
        numbers: what its values and rewards stand for.
        params: its parameters.
        key: of the noise.
        state: where to begin.
        allowed: [env, actions], bool; None if every action is.
        discount: γ.
        simulations: states that a search reaches, beside the first.
        considered: actions that are tried at the first state, at most.
        least_range: values of the actions of a node that differ by less are not stretched to [0, 1], but divided by it.
        gumbel_scale: 1 samples actions, as in training; 0 takes the best, without chance.

    Returns:
        The value is that of the improved policy: Σ π'(a) q(a), over the actions that were tried. The mean over the
        simulations, which halve the actions step by step, would count the worst of them as often as others.

    Raises:
        LookupError: if mctx is not installed.

    Source: Danihelka et al. 2022, sections 3 and 5.
    """
    mctx: Any = imported("mctx")
    _, step, predict = applied(model)(params)

    def after(params: PyTree, key: Array, action: Array, state: Array) -> tuple[Any, Array]:
        state, reward = step(state, action)
        logits, value = predict(state)
        reached = mctx.RecurrentFnOutput(
            reward=numbers.decode(reward),
            discount=jnp.full(action.shape, discount, state.dtype),
            prior_logits=logits,
            value=numbers.decode(value),
        )
        return reached, state

    logits, value = predict(state)
    if allowed is not None:
        logits = masked(logits, allowed)
    found = mctx.gumbel_muzero_policy(
        params,
        key,
        mctx.RootFnOutput(prior_logits=logits, value=numbers.decode(value), embedding=state),
        after,
        simulations,
        invalid_actions=None if allowed is None else ~allowed,
        max_num_considered_actions=considered,
        qtransform=functools.partial(mctx.qtransform_completed_by_mix_value, epsilon=jnp.maximum(least_range, 1e-8)),
        gumbel_scale=gumbel_scale,
    )
    summary = found.search_tree.summary()
    weights = jnp.where(summary.visit_counts > 0, found.action_weights, 0)
    value = (weights * summary.qvalues).sum(-1) / jnp.maximum(weights.sum(-1), 1e-8)
    return Searched(found.action, found.action_weights, summary.visit_probs, value)
