"""Games: rules beside plain loops and known counts, players, matches, the terminal."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rl
from rl import games

NAMES = list(games.GAMES)


def count_positions(game, plies):
    """Different positions after each number of moves from the start, games that ended included."""
    positions, counts = games.starts(game, 1), [1]
    step = jax.jit(jax.vmap(jax.vmap(game.step, (None, 0)), (0, None)))
    for _ in range(plies):
        going = ~np.asarray(jax.vmap(game.ended)(positions))
        positions = jax.tree.map(lambda leaf, going=going: leaf[going], positions)
        after = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), step(positions, jnp.arange(game.actions)))
        legal = np.asarray(jax.vmap(game.legal)(positions)).reshape(-1)
        rows = np.concatenate([np.reshape(leaf, (len(legal), -1)) for leaf in jax.tree.leaves(after)], -1)
        places = np.flatnonzero(legal)
        _, first = np.unique(rows[places], axis=0, return_index=True)
        positions = jax.tree.map(lambda leaf, kept=places[first]: leaf[kept], after)
        counts.append(len(first))
    return counts


@pytest.mark.medium
def test_as_many_positions_as_are_known():
    # Tic-tac-toe: 5478 positions in all. Connect four: sequence A212693 of the OEIS.
    found = count_positions(games.tic_tac_toe(), 9)
    assert found == [1, 9, 72, 252, 756, 1260, 1520, 1140, 390, 78]
    assert sum(found) == 5478
    assert count_positions(games.connect_four(), 6) == [1, 7, 49, 238, 1120, 4263, 16422]


@pytest.mark.parametrize("name", NAMES)
def test_random_games_beside_a_plain_loop(name):
    game, length = games.make(name), {"tic_tac_toe": 3, "connect_four": 4}[name]
    step, random = jax.jit(game.step), np.random.default_rng(0)

    def wins(board, mark):
        rows, columns = board.shape
        for r, c, (down, right) in itertools.product(range(rows), range(columns), ((0, 1), (1, 0), (1, 1), (1, -1))):
            cells = [(r + down * i, c + right * i) for i in range(length)]
            if all(0 <= y < rows and 0 <= x < columns and board[y, x] == mark for y, x in cells):
                return True
        return False

    for _ in range(12):
        position, board, mark = game.start(), np.zeros(game.start().stones.shape, int), 1
        while not game.ended(position):
            legal = np.asarray(game.legal(position))
            expected = board[-1] == 0 if name == "connect_four" else board.reshape(-1) == 0
            np.testing.assert_array_equal(legal, expected)
            action = random.choice(np.flatnonzero(legal))
            row, column = (int((board[:, action] != 0).sum()), action) if name == "connect_four" else divmod(action, 3)
            board[row, column] = mark
            position = step(position, action)
            mark = -mark
            np.testing.assert_array_equal(position.stones, board * mark)  # as who is to move sees it
            np.testing.assert_array_equal(game.observe(position)[..., 0], board == mark)
            assert bool(position.lost) == wins(board, -mark)
            assert bool(game.ended(position)) == (wins(board, -mark) or (board != 0).all())
        assert game.outcome(position) == -wins(board, -mark)
        again = step(position, 0)
        assert all(np.array_equal(*pair) for pair in zip(again, position, strict=True))  # it has ended


@pytest.mark.parametrize("name", NAMES)
def test_the_mirror_image_of_a_game_is_that_game(name):
    game = games.make(name)
    position = turned = game.start()
    reflect = np.asarray(game.mirrored(game.observe(position), jnp.arange(game.actions))[1])
    for seed in range(8):
        action = jax.random.categorical(jax.random.key(seed), jnp.where(game.legal(position), 0.0, -jnp.inf))
        position, turned = game.step(position, action), game.step(turned, reflect[action])
        seen, legal = game.mirrored(game.observe(position), game.legal(position))
        np.testing.assert_array_equal(game.observe(turned), seen)
        np.testing.assert_array_equal(game.legal(turned), legal)
        if game.ended(position):
            break


@pytest.mark.medium
def test_minimax_finds_wins_and_defends():
    game = games.connect_four()
    position = game.start()
    for action in (3, 0, 3, 0, 3):  # three of the first player in column 3
        position = game.step(position, action)
    values = games.action_values(game, position, 2)
    assert values.argmax() == 3  # the only defense
    assert (np.delete(np.asarray(values), 3) < -0.9).all()
    position = game.step(position, 1)
    np.testing.assert_allclose(games.action_values(game, position, 1)[3], 1)


def test_what_four_in_a_row_is_worth():
    game = games.connect_four()
    position = game.start()
    for action in (3, 0):
        position = game.step(position, action)
    assert games.open_fours(position) > 0  # the middle is a part of more lines
    mirrored = position._replace(stones=-position.stones)
    np.testing.assert_allclose(games.open_fours(mirrored), -games.open_fours(position), rtol=1e-6)
    assert games.open_fours(game.start()) == 0


@pytest.mark.medium
def test_matches():
    game = games.tic_tac_toe()
    deep, random = games.minimax(game, 4), games.random_player(game)
    found = games.match(game, deep, random, games=60, opening_moves=1)
    back = games.match(game, random, deep, games=60, opening_moves=1)
    assert found.won + found.drawn + found.lost == 60
    assert found.score > 0.8 > 0.2 > back.score
    assert 20 < found.distinct <= 60
    first = lambda key, positions: jax.vmap(game.legal)(positions).argmax(-1)  # noqa: E731
    same = games.match(game, first, first, games=20, opening_moves=0)
    assert same == (10, 0, 10, 2)  # who moves first wins: one game for each side


def test_openings_of_self_play_end_no_game():
    env, keys = games.self_play(games.tic_tac_toe(), 9), jax.random.split(jax.random.key(0), 3000)
    positions, outcome = jax.jit(jax.vmap(env.reset))(keys)
    assert not np.asarray(outcome.terminated).any()
    moves = np.bincount(np.count_nonzero(np.asarray(positions.stones), (1, 2)), minlength=10)
    np.testing.assert_allclose(moves[:5] / len(keys), 1 / 10, atol=0.02)  # of the 10 numbers each as often
    assert moves[9] == 0 < moves[8]  # every ninth move ends the game
    assert not np.asarray(jax.vmap(games.tic_tac_toe().ended)(positions)).any()


@pytest.mark.parametrize("at_once", [16, 128])
def test_every_line(at_once):
    game = games.tic_tac_toe()
    first_free = lambda key, positions: jax.vmap(game.legal)(positions).argmax(-1)  # noqa: E731
    found = games.every_line(game, first_free, at_once=at_once)
    step = jax.jit(game.step)

    def plain(position, own, ends, moved):  # the ends that a plain loop reaches
        place = np.asarray(position.stones).tobytes()
        if game.ended(position):
            ends.add((int(game.outcome(position)) * (1 if own else -1), place))
            return
        legal = np.flatnonzero(game.legal(position))
        if own and place in moved:
            return
        if own:
            moved.add(place)
        for action in legal[:1] if own else legal:
            plain(step(position, int(action)), not own, ends, moved)

    counts = np.zeros(4, int)
    for own in (True, False):
        ends, moved = set(), set()
        plain(game.start(), own, ends, moved)
        counts += [len(moved), *(sum(outcome == value for outcome, _ in ends) for value in (1, 0, -1))]
    assert found == tuple(counts)
    assert found.lost > 0


@pytest.mark.medium
def test_a_game_against_an_opponent_is_an_environment():
    game = games.tic_tac_toe()
    env = games.against(game, games.random_player(game))
    algorithm = rl.ppo(env.observation_space, env.action_space, num_steps=8)
    learner = rl.on_device(algorithm, env, 4)
    _, metrics = jax.jit(learner.step)(learner.init(jax.random.key(0)))
    assert metrics["length"].compute() <= 5
    resets = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 100))[0]
    assert 30 < (resets.stones != 0).any((1, 2)).sum() < 70  # half of the time the opponent begins
    position = games.starts(game, 1)
    position = jax.tree.map(lambda leaf: leaf[0], position)
    for action in (0, 3, 1, 4):
        position = game.step(position, action)
    _, outcome = env.step(position, 2, jax.random.key(0))
    assert outcome.terminated
    assert outcome.reward == 1


def test_games_of_pgx():
    pgx = pytest.importorskip("pgx", reason="pgx is not installed")
    own, theirs = games.tic_tac_toe(), games.from_pgx(pgx.make("tic_tac_toe"))
    step, step_theirs = jax.jit(own.step), jax.jit(theirs.step)
    for seed in range(20):
        position, state, random = own.start(), theirs.start(), np.random.default_rng(seed)
        while not own.ended(position):
            action = random.choice(np.flatnonzero(own.legal(position)))
            position, state = step(position, action), step_theirs(state, action)
            np.testing.assert_array_equal(theirs.observe(state), own.observe(position))
            assert theirs.ended(state) == own.ended(position)
            assert theirs.outcome(state) == own.outcome(position)
        np.testing.assert_array_equal(step_theirs(state, 0).rewards, state.rewards)  # it stays as it is
    with pytest.raises(ValueError, match="from_pgx: 2048 is for 1 player"):
        games.make("pgx:2048")
    with pytest.raises(ValueError, match="backgammon has chance or hidden parts"):
        games.make("pgx:backgammon")


def test_a_game_in_the_terminal():
    game, lines = games.tic_tac_toe(), []
    last = lambda key, positions: 8 - jax.vmap(game.legal)(positions)[:, ::-1].argmax(-1)  # noqa: E731
    answers = iter(["0", "9", "0", "1", "2"])
    assert games.play(game, last, read=lambda _: next(answers), write=lines.append) == 1
    said = "\n".join(lines)
    assert "'9' is no move here: give one of 1 2 3 4 5 6 7, or q to stop" in said
    assert "'0' is no move here" in said
    assert "You have won." in said
    assert " X | X | X" in said
    answers = iter(["q"])
    assert games.play(game, last, first=False, read=lambda _: next(answers), write=lines.append) == 0
    assert "plays 8" in lines[-2]


def spaces_of_self_play(game):
    env = games.self_play(game)
    return env.observation_space, env.action_space


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda game: games.make("chess"), "no game 'chess'; there are tic_tac_toe, connect_four"),
        (lambda game: games.minimax(game, 0), r"minimax\(depth=0\)"),
        (lambda game: games.minimax(game, 9), r"9\^9 lines of that many moves"),
        (lambda game: games.match(game, None, None, games=3), "an even number"),
        (lambda game: games.openings(game, 4, 9), "no game of tic_tac_toe goes on for so long"),
        (lambda game: rl.search.mcts(game, 0), r"mcts\(simulations=0\): at least 1"),
        (lambda game: games.self_play(game, -1), r"self_play\(opening_moves=-1\): 0 or more"),
        (lambda game: rl.envs.make("connect_four"), "a game for two players: jdl run alphazero --game connect_four"),
        (lambda game: rl.ppo(*spaces_of_self_play(game)), r"Positions\(tic_tac_toe\), of a game for two: rl.alphazero"),
        (
            lambda game: rl.alphazero(game, games.PolicyValue(games.BoardMLP(), 7), num_envs=8),
            r"its outputs have the shapes \(\(1, 7\), \(1,\)\); tic_tac_toe needs logits \(1, 9\) and values \(1,\)",
        ),
        (lambda game: rl.alphazero(game, num_envs=8, window=0), r"alphazero\(window=0\): at least 1"),
        (lambda game: rl.alphazero(game, num_envs=8, simulations=0), r"alphazero\(simulations=0\)"),
    ],
)
def test_what_cannot_be(wrong, message):
    with pytest.raises((ValueError, LookupError), match=message):
        wrong(games.tic_tac_toe())
