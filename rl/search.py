"""Tree search in games, by mctx (`pip install 'jdl[search]'`): Gumbel search with a network, and plain MCTS.

Values are those of the player to move. What is good for one is bad for the other, so a child's value counts negatively:
a discount of -1, and of 0 where the game has ended.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rl.envs.libraries import imported
from rl.games.game import Game, Player, Position
from rl.off_policy import check_counts

# (params, observations [game, ...]) -> (logits [game, actions], values [game])
Evaluate = Callable[[PyTree, Array], tuple[Array, Array]]

_LEAST = -1e9  # logit of what is not allowed: finite, since the search takes differences


class Searched(NamedTuple):
    """What a search found.

    Attributes:
        action: [game], int32; the action to take.
        weights: [game, actions], float32; the improved policy, what a network should learn. They sum to 1.
        visits: [game, actions], float32; share of the simulations that began with each action.
        value: [game], float32; of the position for the player to move.
    """

    action: Int[Array, " game"]
    weights: Float[Array, "game actions"]
    visits: Float[Array, "game actions"]
    value: Float[Array, " game"]


def masked(logits: Float[Array, "game actions"], legal: Array) -> Float[Array, "game actions"]:
    """Logits with a very low number for actions that are not legal, and 0 as the highest.

    Args:
        logits: of a policy.
        legal: [game, actions], bool.
    """
    logits = jnp.where(legal, logits, -jnp.inf)
    return jnp.maximum(logits - logits.max(-1, keepdims=True), _LEAST)


def gumbel_search(
    game: Game,
    evaluate: Evaluate,
    params: PyTree,
    key: Array,
    positions: Position,
    *,
    simulations: int = 32,
    considered: int = 16,
    gumbel_scale: float = 1.0,
) -> Searched:
    """Search from each position, guided by a network.

    Args:
        game: the game.
        evaluate: the network, `(params, observations [game, ...]) -> (logits [game, actions], values [game])`.
        params: its parameters.
        key: of the noise.
        positions: leaves [game, ...].
        simulations: positions that a search evaluates, beside the first.
        considered: actions that are tried at the first position, at most.
        gumbel_scale: 1 samples actions, as in training; 0 takes the best, without chance.

    Raises:
        LookupError: if mctx is not installed.
        ValueError: for `simulations` or `considered` below 1.

    Source: Danihelka et al. 2022, algorithm 1.
    """
    check_counts("gumbel_search", simulations=simulations, considered=considered)
    mctx: Any = imported("mctx")
    found = mctx.gumbel_muzero_policy(
        params,
        key,
        _root(mctx, game, evaluate, params, positions),
        _steps(mctx, game, evaluate),
        simulations,
        invalid_actions=~jax.vmap(game.legal)(positions),
        max_num_considered_actions=considered,
        gumbel_scale=gumbel_scale,
    )
    return _searched(found, found.action)


def evaluation(network: nn.Module) -> Evaluate:
    """A network as searches call it.

    Args:
        network: module from observations to (logits, values).
    """
    return lambda params, observation: network.apply({"params": params}, observation)  # type: ignore[return-value]


def search_player(game: Game, evaluate: Evaluate, params: PyTree, **options: int) -> Player:
    """A player who searches, and takes the best that it finds.

    Args:
        game: the game.
        evaluate: the network (`evaluation`).
        params: its parameters.
        **options: `simulations` and `considered` of `gumbel_search`.
    """

    def play(key: Array, positions: Position) -> Array:
        return gumbel_search(game, evaluate, params, key, positions, gumbel_scale=0.0, **options).action

    return play


def policy_player(game: Game, evaluate: Evaluate, params: PyTree) -> Player:
    """A player who takes the action that a network prefers, without a search.

    Args:
        game: the game.
        evaluate: the network (`evaluation`).
        params: its parameters.
    """

    def play(key: Array, positions: Position) -> Array:
        logits, _ = evaluate(params, jax.vmap(game.observe)(positions))
        return masked(logits, jax.vmap(game.legal)(positions)).argmax(-1)

    return play


def mcts(game: Game, simulations: int) -> Player:
    """A player without a network: Monte-Carlo tree search with a uniform prior, where random moves value a leaf.

    Args:
        game: the game.
        simulations: per move.

    Raises:
        LookupError: if mctx is not installed.
        ValueError: for `simulations` below 1.

    Source: Kocsis and Szepesvari 2006; the rule of choice is that of Silver et al. 2018.
    """
    check_counts("mcts", simulations=simulations)
    mctx: Any = imported("mctx")

    def play(key: Array, positions: Position) -> Array:
        legal = jax.vmap(game.legal)(positions)
        root = mctx.RootFnOutput(
            prior_logits=masked(jnp.zeros(legal.shape), legal), value=jnp.zeros(len(legal)), embedding=positions
        )
        key, tie_key = jax.random.split(key)
        found = mctx.muzero_policy(
            (),
            key,
            root,
            _playouts(mctx, game),
            simulations,
            invalid_actions=~legal,
            dirichlet_fraction=0.0,
            temperature=0.0,
            pb_c_init=1.4,
            qtransform=lambda tree, index: (tree.qvalues(index) + 1) / 2,
        )
        visits = _searched(found, found.action).visits
        return jnp.argmax(visits + 1e-6 * jax.random.uniform(tie_key, visits.shape), -1)

    return play


def random_outcome(game: Game, key: Array, position: Position) -> Array:
    """The outcome for the player to move when both sides play at random until the end; for one position.

    Args:
        game: the game.
        key: of the moves.
        position: where to begin.
    """

    def going(now: tuple[Any, ...]) -> Array:
        return ~game.ended(now[1])

    def play(now: tuple[Any, ...]) -> tuple[Any, ...]:
        key, position, sign = now
        key, own = jax.random.split(key)
        move = jax.random.categorical(own, jnp.where(game.legal(position), 0.0, -jnp.inf))
        return key, game.step(position, move), -sign

    _, last, sign = jax.lax.while_loop(going, play, (key, position, jnp.float32(1)))
    return sign * game.outcome(last)


def _root(mctx: Any, game: Game, evaluate: Evaluate, params: PyTree, positions: Position) -> Any:
    logits, values = evaluate(params, jax.vmap(game.observe)(positions))
    legal = jax.vmap(game.legal)(positions)
    return mctx.RootFnOutput(prior_logits=masked(logits, legal), value=values, embedding=positions)


def _steps(mctx: Any, game: Game, evaluate: Evaluate) -> Callable[..., Any]:
    def after(params: PyTree, key: Array, action: Array, positions: Position) -> tuple[Any, Position]:
        positions = jax.vmap(game.step)(positions, action)
        logits, values = evaluate(params, jax.vmap(game.observe)(positions))
        return _reached(mctx, game, positions, logits, values), positions

    return after


def _playouts(mctx: Any, game: Game) -> Callable[..., Any]:
    def after(params: PyTree, key: Array, action: Array, positions: Position) -> tuple[Any, Position]:
        positions = jax.vmap(game.step)(positions, action)
        values = jax.vmap(lambda key, one: random_outcome(game, key, one))(
            jax.random.split(key, len(action)), positions
        )
        return _reached(mctx, game, positions, jnp.zeros((len(action), game.actions)), values), positions

    return after


def _reached(mctx: Any, game: Game, positions: Position, logits: Array, values: Array) -> Any:
    """What mctx asks of an edge: the reward is that of the player who moved."""
    ended = jax.vmap(game.ended)(positions)
    return mctx.RecurrentFnOutput(
        reward=-jax.vmap(game.outcome)(positions),
        discount=jnp.where(ended, 0.0, -1.0),
        prior_logits=masked(logits, jax.vmap(game.legal)(positions)),
        value=jnp.where(ended, 0.0, values),
    )


def _searched(found: Any, action: Array) -> Searched:
    summary = found.search_tree.summary()
    return Searched(action, found.action_weights, summary.visit_probs, summary.value)
