"""Tree search and AlphaZero: forced moves, signs of values, targets beside a plain loop, laws of learners."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
import rl
from rl import games, search

GAME = games.tic_tac_toe()
NUM_ENVS, NUM_STEPS = 8, 12


def knows_nothing(params, observation):
    return jnp.zeros((len(observation), GAME.actions)), jnp.zeros(len(observation))


def after(*actions):
    position = GAME.start()
    for action in actions:
        position = GAME.step(position, action)
    return jax.tree.map(lambda leaf: leaf[None], position)


WIN, DEFEND, LOST = after(0, 3, 1, 4), after(0, 4, 1), after(4, 1, 0, 8, 6)  # 2 wins; 2 is forced; 2 and 3 threaten


def searched(positions, evaluate=knows_nothing, simulations=64, **options):
    return search.gumbel_search(
        GAME, evaluate, (), jax.random.key(0), positions, simulations=simulations, gumbel_scale=0.0, **options
    )


@pytest.mark.medium
def test_a_search_wins_defends_and_knows_when_it_has_lost():
    won, defended, lost = searched(WIN), searched(DEFEND), searched(LOST, simulations=200)
    assert (won.action[0], defended.action[0]) == (2, 2)
    assert won.value[0] > 0.2
    assert lost.value[0] < -0.2
    for one in (won, defended, lost):
        np.testing.assert_allclose(one.weights.sum(), 1, rtol=1e-5)
        np.testing.assert_allclose(one.visits.sum(), 1, rtol=1e-5)


def test_what_a_network_says_of_an_ended_game_counts_nowhere():
    mistaken = lambda params, seen: (jnp.zeros((len(seen), 9)), jnp.ones(len(seen)))  # noqa: E731
    found = searched(WIN, mistaken, simulations=9)
    assert found.action[0] == 2  # worth 1, where every other move is worth -1 to the one who makes it
    assert found.weights[0].argmax() == 2


def test_no_search_takes_what_is_not_legal():
    taken = (0, 3, 1, 4)
    eager = lambda params, seen: (jnp.full((len(seen), 9), -50.0).at[:, jnp.array(taken)].set(50), jnp.zeros(len(seen)))  # noqa: E731
    found = searched(WIN, eager, simulations=32)
    assert found.action[0] == 2
    np.testing.assert_array_equal(found.weights[0, jnp.array(taken)], 0)
    np.testing.assert_array_equal(found.visits[0, jnp.array(taken)], 0)
    assert jnp.isfinite(found.weights).all()
    alone = search.policy_player(GAME, eager, ())(jax.random.key(0), WIN)
    assert alone[0] not in taken


@pytest.mark.medium
def test_monte_carlo_tree_search_wins_and_defends():
    play = search.mcts(GAME, 200)
    found = [play(jax.random.key(seed), one)[0] for one in (WIN, DEFEND) for seed in range(3)]
    assert found == [2] * 6


def test_random_games_are_worth_what_all_of_them_are():
    """From two empty squares: a plain count of both orders."""
    position = jax.tree.map(lambda leaf: leaf[0], after(0, 1, 2, 4, 3, 5, 7))
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.vmap(lambda key: search.random_outcome(GAME, key, position))(keys)
    expected = []
    for action in (6, 8):
        one = GAME.step(position, action)
        if GAME.ended(one):
            expected.append(-GAME.outcome(one))
        else:
            expected.append(GAME.outcome(GAME.step(one, 14 - action)))
    np.testing.assert_allclose(found.mean(), np.mean(expected), atol=0.05)


def agent_and_env(opening_moves=4, width=16, **options):
    network = games.PolicyValue(games.BoardMLP((width, width)), GAME.actions)
    options = {"num_steps": NUM_STEPS, "simulations": 4, "minibatches": 2, "batch_size": 16, "window": 2} | options
    algorithm = rl.alphazero(GAME, network, num_envs=NUM_ENVS, optimizer=optax.adam(1e-3), **options)
    return network, rl.on_device(algorithm, games.self_play(GAME, opening_moves), NUM_ENVS)


@pytest.mark.medium
def test_targets_beside_a_plain_loop():
    network, learner = agent_and_env(0, minibatches=1)
    begun = learner.init(jax.random.key(0))
    state, metrics = jax.jit(learner.step)(begun)
    examples = jax.tree.map(
        lambda leaf: np.asarray(leaf[0]).reshape(NUM_STEPS, NUM_ENVS, *leaf.shape[2:]), state.agent.examples
    )
    last = jax.vmap(GAME.observe)(state.timestep.observation)
    _, value = network.apply({"params": begun.agent.params}, last)
    ended = 0
    for env in range(NUM_ENVS):
        seen, target = examples["observation"][:, env], examples["target"][:, env]
        expected = float(value[env])  # of who moves next, where the rollout ends
        for time in reversed(range(NUM_STEPS)):
            following = seen[time + 1] if time + 1 < NUM_STEPS else np.asarray(last[env])
            if following.sum() == 0:  # a new game: this move has ended one, by a line or as the last of nine
                ended += 1
                free = np.flatnonzero(seen[time].sum(-1) == 0)
                expected = float(any(completes(seen[time, ..., 0], action) for action in free))
            else:
                expected = -expected
            np.testing.assert_allclose(target[time], expected, atol=1e-5)
    assert ended >= NUM_ENVS
    assert metrics["length"].compute() <= 9
    np.testing.assert_allclose(examples["weights"].sum(-1), 1, rtol=1e-5)
    assert (examples["weights"][~examples["legal"]] == 0).all()


def completes(own, action):
    board = own.reshape(9).copy()
    board[action] = 1
    board = board.reshape(3, 3)
    return max(*board.sum(0), *board.sum(1), np.trace(board), np.trace(board[:, ::-1])) == 3


@pytest.mark.medium
def test_examples_of_the_last_rollouts_are_kept():
    _, learner = agent_and_env(window=2)
    step, state = jax.jit(learner.step), learner.init(jax.random.key(0))
    kept = []
    for _ in range(3):
        state, _ = step(state)
        kept.append(jax.device_get(state.agent.examples["observation"]))
    np.testing.assert_array_equal(kept[1][0], kept[0][0])
    np.testing.assert_array_equal(kept[2][1], kept[1][1])
    assert not np.array_equal(kept[2][0], kept[1][0])


@pytest.mark.diagnosis  # agents with as much in them are resumed in `test_agents.py` and `test_continuous.py`
def test_resume_is_to_the_bit(tmp_path):
    learner = jdl.jit(agent_and_env()[1])
    whole = jdl.fit(learner, None, steps=4, run=tmp_path / "whole").state
    jdl.fit(learner, None, steps=2, run=tmp_path / "parts", checkpoint_every=1)
    parts = jdl.fit(learner, None, steps=4, run=tmp_path / "parts", resume=True).state
    same = jax.tree.map(np.array_equal, jax.device_get(whole.agent), jax.device_get(parts.agent))
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_a_seed_among_others_is_that_seed_alone():
    learner = agent_and_env()[1]
    several = jdl.jit(jdl.seeds(learner, [3, 5], placement="map"))
    state, _ = several.step(several.init(jax.random.key(0)), None)
    alone = jdl.jit(jdl.seeds(learner, [5], placement="map"))
    one, _ = alone.step(alone.init(jax.random.key(0)), None)
    for together, by_itself in zip(jax.tree.leaves(state.agent), jax.tree.leaves(one.agent), strict=True):
        np.testing.assert_array_equal(together[1], by_itself[0])


@pytest.mark.slow
@pytest.mark.parametrize("split", [jdl.pmap, lambda learner: jdl.accumulate(learner, 2)], ids=["pmap", "accumulate"])
def test_gradients_are_the_same_however_they_are_split(split, x64):
    """The same games: a search that has no chance in it."""
    learners = [jdl.jit(one) for one in (agent_and_env()[1], split(agent_and_env()[1]))]
    results = [one.step(one.init(jax.random.key(2)), None) for one in learners]
    for one, other in zip(*(jax.tree.leaves(result[0].agent.params) for result in results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_it_learns_to_lose_fewer_lines():
    network, learner = agent_and_env(width=32, num_steps=16, simulations=8, minibatches=16, batch_size=128)
    learner = jdl.jit(jdl.scan(learner, 300))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    evaluate = search.evaluation(network)
    players = [
        search.policy_player(GAME, evaluate, one.agent.params) for one in (learner.init(jax.random.key(0)), state)
    ]
    lost = [games.every_line(GAME, player).lost for player in players]
    assert lost[1] < lost[0] / 4


def test_as_many_games_as_it_was_made_for():
    algorithm = rl.alphazero(GAME, num_envs=4, num_steps=2, simulations=2)
    learner = rl.on_device(algorithm, games.self_play(GAME), 8)
    with pytest.raises(ValueError, match=r"alphazero\(num_envs=4\): a rollout has 8 games; give rl.on_device the same"):
        jax.eval_shape(learner.step, jax.eval_shape(learner.init, jax.random.key(0)))


def test_without_mctx_it_says_so_before_it_compiles(monkeypatch):
    monkeypatch.setitem(sys.modules, "mctx", None)
    for make in (lambda: rl.alphazero(GAME, num_envs=4), lambda: search.mcts(GAME, 4)):
        with pytest.raises(LookupError, match=r"mctx is not installed .*: pip install mctx"):
            make()
