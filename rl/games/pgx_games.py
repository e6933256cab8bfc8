"""Games for two players of pgx: Othello, Go, Hex, chess and others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rl.games.game import Game


def from_pgx(env: Any) -> Game:
    """A game from pgx: `from_pgx(pgx.make("othello"))`.

    Args:
        env: the pgx game.

    Raises:
        ValueError: for games of another number of players, and for those with chance.
    """
    if env.num_players != 2:
        raise ValueError(f"from_pgx: {env.id} is for {env.num_players} player(s); these games are for two")
    if env.id in _WITH_CHANCE:
        raise ValueError(f"from_pgx: {env.id} has chance or hidden parts, which this search does not know")

    def start() -> Any:
        return env.init(jax.random.key(0))  # which decides only who of the two is called player 0

    def step(state: Any, action: Array) -> Any:
        over = ended(state)  # pgx would give no more rewards
        return jax.tree.map(lambda old, new: jnp.where(over, old, new), state, env.step(state, action))

    def observe(state: Any) -> Array:
        return state.observation.astype(jnp.float32)

    def legal(state: Any) -> Array:
        return state.legal_action_mask | ended(state)

    def ended(state: Any) -> Array:
        return state.terminated | state.truncated

    def outcome(state: Any) -> Array:
        return jnp.where(ended(state), jnp.sign(state.rewards[state.current_player]), 0.0)

    return Game(f"pgx:{env.id}", start, step, observe, legal, ended, outcome, env.num_actions, None, _shown)


_WITH_CHANCE = {"backgammon", "kuhn_poker", "leduc_holdem", "bridge_bidding", "sparrow_mahjong"}


def _shown(state: Any) -> str:
    """The first two planes as a board, where o is who is to move; numbers if there are no such planes."""
    seen = np.asarray(state.observation)
    if seen.ndim != 3 or seen.shape[-1] < 2:
        return str(seen.astype(int))
    marks = np.where(seen[..., 0] > 0, "o", np.where(seen[..., 1] > 0, "x", "."))
    return "\n".join(" ".join(row) for row in marks)
