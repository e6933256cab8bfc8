"""AlphaZero (Silver et al. 2018) with Gumbel search (Danihelka et al. 2022): a network learns what its search finds."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import jdl
from jdl.core import seam
from jdl.core.accumulators import Mean, merge_axis
from jdl.core.update import apply_gradients
from rl.envs.libraries import imported
from rl.games.game import Game
from rl.games.network import BoardMLP, PolicyValue
from rl.off_policy import check_counts
from rl.returns import lambda_returns
from rl.search import evaluation, gumbel_search, masked
from rl.types import Algorithm, Experience, TimeStep


@flax.struct.dataclass
class AlphaZeroAgent:
    """Everything that changes while it learns.

    Attributes:
        params: parameters of the network.
        optimizer: state of the Optax optimizer.
        examples: leaves [window, time * game, ...]; what the last rollouts taught.
        rollouts: scalar int32; rollouts so far.
    """

    params: Any
    optimizer: Any
    examples: Any
    rollouts: Any


def alphazero(
    game: Game,
    network: nn.Module | None = None,
    *,
    num_envs: int,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 32,
    simulations: int = 32,
    considered: int = 16,
    minibatches: int = 32,
    batch_size: int = 256,
    window: int = 4,
    gae_lambda: float = 1.0,
    value_weight: float = 1.0,
    mirror: bool = True,
) -> Algorithm:
    """AlphaZero for a game of `rl.games`; it learns on both sides of games with itself.

        learner = rl.on_device(rl.alphazero(game, num_envs=256), rl.games.self_play(game), 256)

    It acts by searching, also greedily; `rl.search.policy_player` plays without a search. Games that a rollout cuts off
    are valued by the network where they stand, and go on in the next rollout.

    Args:
        game: the game.
        network: module from observations to (logits, values); by default `rl.games.PolicyValue` on `rl.games.BoardMLP`.
        num_envs: games that are played in parallel.
        optimizer: by default AdamW(1e-3, weight decay 1e-4).
        num_steps: moves in each of the games per rollout.
        simulations: positions that a search evaluates.
        considered: actions that a search tries at the first position, at most.
        minibatches: updates per rollout.
        batch_size: examples in each.
        window: rollouts that examples are drawn from.
        gae_lambda: 1 learns the outcomes of games; below it, outcomes mixed with the values that searches found.
        value_weight: weight of the value loss.
        mirror: learn from examples and, as often, from their mirror images, if the game has some.

    Raises:
        LookupError: if mctx is not installed.
        ValueError: for counts below 1, and for a network whose outputs are not those of the game.
    """
    if optimizer is None:
        optimizer = optax.adamw(1e-3, weight_decay=1e-4)
    check_counts("alphazero", num_envs=num_envs, num_steps=num_steps, simulations=simulations, considered=considered)
    check_counts("alphazero", minibatches=minibatches, batch_size=batch_size, window=window)
    imported("mctx")  # else its lack would show when the first step is compiled
    model = PolicyValue(BoardMLP(), game.actions) if network is None else network
    evaluate = evaluation(model)
    _check(game, model)
    size = num_envs * num_steps

    def init(key: Array) -> AlphaZeroAgent:
        observation = game.observe(game.start())
        params = model.init(key, observation[None])["params"]
        example = {
            "observation": observation,
            "legal": jnp.ones(game.actions, bool),
            "weights": jnp.zeros(game.actions),
            "target": jnp.zeros(()),
        }
        examples = jax.tree.map(lambda leaf: jnp.zeros((window, size, *leaf.shape), leaf.dtype), example)
        return AlphaZeroAgent(params, optimizer.init(params), examples, jnp.zeros((), jnp.int32))

    def act(
        agent: AlphaZeroAgent, carry: Any, timestep: TimeStep, key: Array, greedy: bool
    ) -> tuple[Array, Any, dict[str, Array]]:
        found = gumbel_search(
            game,
            evaluate,
            agent.params,
            key,
            timestep.observation,
            simulations=simulations,
            considered=considered,
            gumbel_scale=0.0 if greedy else 1.0,
        )
        return found.action, carry, {"weights": found.weights, "value": found.value}

    def update(agent: AlphaZeroAgent, experience: Experience, key: Array) -> tuple[AlphaZeroAgent, dict[str, Mean]]:
        place = agent.rollouts % window
        examples = jax.tree.map(lambda kept, new: kept.at[place].set(new), agent.examples, _examples(agent, experience))
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), examples)
        there = jnp.minimum(agent.rollouts + 1, window) * size

        def minibatch(state: tuple[PyTree, Any], key: Array) -> tuple[tuple[PyTree, Any], Any]:
            params, optimizer_state = state
            row_key, mirror_key, own_key = jax.random.split(key, 3)
            rows = jax.random.randint(row_key, (batch_size,), 0, there)
            turned = jax.random.bernoulli(mirror_key, 0.5, (batch_size,))
            own = seam.current().share(jnp.arange(batch_size))  # under `jdl.pmap`, this replica's part
            part = jax.tree.map(lambda leaf: leaf[rows[own]], flat)
            if mirror and game.mirrored is not None:
                part = jax.vmap(_turned, (None, 0, 0))(game, turned[own], part)
            grads, mean, measured = jdl.gradients(loss, params, part, own_key, separable=True)
            return apply_gradients(optimizer, grads, optimizer_state, params, mean, loss, part, own_key), measured

        (params, optimizer_state), measured = jax.lax.scan(
            minibatch, (agent.params, agent.optimizer), jax.random.split(key, minibatches)
        )
        return AlphaZeroAgent(params, optimizer_state, examples, agent.rollouts + 1), merge_axis(measured, 0)

    def loss(params: PyTree, part: dict[str, Array], key: Array) -> tuple[Array, Array, dict[str, Mean]]:
        logits, value = evaluate(params, part["observation"])
        log_probs = jax.nn.log_softmax(masked(logits, part["legal"]))
        surprise = -(part["weights"] * log_probs).sum(-1)
        own_entropy = jax.scipy.special.entr(part["weights"]).sum(-1)
        error = (value - part["target"]) ** 2
        count = jnp.float32(len(value))
        each = {"policy_loss": surprise, "value_loss": error, "search_gain": surprise - own_entropy}
        total = (surprise + value_weight * error).sum()
        return total, count, {name: Mean(x.sum(), count) for name, x in each.items()}

    def _examples(agent: AlphaZeroAgent, experience: Experience) -> dict[str, Array]:
        """What a rollout teaches, leaves [time * game, ...]."""
        if experience.reward.shape[1] != num_envs:
            raise ValueError(
                f"alphazero(num_envs={num_envs}): a rollout has {experience.reward.shape[1]} games; give "
                "rl.on_device the same number"
            )
        each = jax.vmap(jax.vmap(game.observe))(experience.timestep.observation)
        _, last = evaluate(agent.params, jax.vmap(game.observe)(experience.last.observation))
        value = experience.extras["value"]
        following = jnp.concatenate([value[1:], last[None]])
        # The next to move is the other player: what he wins, the player loses.
        target = lambda_returns(
            experience.reward, following, experience.terminated, experience.truncated, -1.0, gae_lambda
        )
        taught = {
            "observation": each,
            "legal": experience.timestep.action_mask,
            "weights": experience.extras["weights"],
            "target": target,
        }
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), taught)

    return Algorithm(init, lambda num_envs: (), act, update, num_steps)


def _check(game: Game, model: nn.Module) -> None:
    """Refuse a network whose outputs are not those of the game."""
    observation = game.observe(game.start())[None]
    found = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), observation)[0])
    shapes = jax.tree.map(lambda leaf: leaf.shape, found)
    if shapes != ((1, game.actions), (1,)):
        raise ValueError(
            f"alphazero(network=...): for a batch of 1 its outputs have the shapes {shapes}; {game.name} needs logits "
            f"{(1, game.actions)} and values (1,), as rl.games.PolicyValue(torso, {game.actions}) returns them"
        )


def _turned(game: Game, turned: Array, example: dict[str, Array]) -> dict[str, Array]:
    assert game.mirrored is not None
    observation, weights = game.mirrored(example["observation"], example["weights"])
    _, legal = game.mirrored(example["observation"], example["legal"])
    mirror = {**example, "observation": observation, "weights": weights, "legal": legal}
    return jax.tree.map(lambda one, other: jnp.where(turned, one, other), mirror, example)
