"""AlphaZero with Gumbel search on games for two players: it learns from games with itself, and is measured by others.

Run:       jdl run alphazero --seeds 5                      (tic-tac-toe, against every line of replies)
           jdl run alphazero --game connect_four --seeds 3
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import jdl
import rl
from rl import games


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters; what is None is tuned for the game, or else common."""

    game: Literal["tic_tac_toe", "connect_four"] = "tic_tac_toe"
    network: Literal["mlp", "cnn"] | None = None
    total_steps: int | None = None  # moves, of all games together
    num_envs: int | None = None  # games in parallel
    opening_moves: int | None = None  # random moves before a game begins, at most
    num_steps: int | None = None  # moves in each of them per rollout
    simulations: int | None = None
    considered: int | None = None  # actions that a search tries at the first position
    minibatches: int | None = None  # updates per rollout
    batch_size: int | None = None
    window: int | None = None  # rollouts that examples are drawn from
    gae_lambda: float | None = None  # 1 learns outcomes; below it, the values of searches too
    learning_rate: float | None = None  # decays to zero over the run
    mirror: bool = True
    num_games: int = 200  # of each match at the end
    opponent_simulations: int = 1000  # of the Monte-Carlo tree search that it is measured by


SMOKE = {
    "total_steps": 512,
    "num_envs": 8,
    "num_steps": 8,
    "simulations": 4,
    "minibatches": 2,
    "batch_size": 16,
    "num_games": 4,
    "opponent_simulations": 8,
}
RECORDS = {
    "": jdl.Record(
        seeds=5,
        bars={"lost lines": "<= 0"},
        shown=("lost lines", "lost lines (network alone)", "lost lines (untrained)"),
        beside="perfect play: no line is lost",
    ),
    "connect_four": jdl.Record(
        {"game": "connect_four"},
        seeds=3,
        bars={"score against MCTS": ">= 0.9", "score against random (network alone)": ">= 0.99"},
        shown=(
            "score against MCTS",
            "score against minimax",
            "score against random (network alone)",
            "score against MCTS (network alone)",
            "score against MCTS (untrained)",
        ),
        beside="AlphaZero.jl, 600 simulations, 15 hours on a GPU: 1.0; its network alone 0.92 against MCTS",
    ),
}

COMMON = {
    "network": "mlp",
    "total_steps": 400_000,
    "num_envs": 128,
    "opening_moves": 6,
    "num_steps": 16,
    "simulations": 16,
    "considered": 16,
    "minibatches": 16,
    "batch_size": 256,
    "window": 4,
    "gae_lambda": 1.0,
    "learning_rate": 2e-3,
}
TUNED: dict[str, dict[str, Any]] = {
    "connect_four": {
        "total_steps": 10_000_000,
        "num_envs": 256,
        "opening_moves": 36,
        "num_steps": 32,
        "simulations": 32,
        "batch_size": 512,
        "window": 8,
    },
}
DEPTH = 5  # moves that the minimax player looks ahead


def settings(config: Config) -> dict[str, Any]:
    """The config with what is tuned for its game."""
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return {**COMMON, **TUNED.get(config.game, {}), **given}


def network(config: Config, game: games.Game) -> games.PolicyValue:
    """The network of the agent."""
    torso = games.BoardCNN() if settings(config)["network"] == "cnn" else games.BoardMLP()
    return games.PolicyValue(torso, game.actions)


def algorithm(config: Config, game: games.Game) -> rl.Algorithm:
    """AlphaZero with AdamW, its learning rate decaying to zero."""
    chosen = settings(config)
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"]) * chosen["minibatches"]
    schedule = optax.cosine_decay_schedule(chosen["learning_rate"], count)
    made = {"game": game, "network": network(config, game), "optimizer": optax.adamw(schedule, weight_decay=1e-4)}
    return rl.alphazero(**rl.options(rl.alphazero, {**chosen, **made}))


def learner(config: Config) -> jdl.Learner:
    """The learner of one run."""
    game, chosen = games.make(config.game), settings(config)
    return rl.on_device(algorithm(config, game), games.self_play(game, chosen["opening_moves"]), chosen["num_envs"])


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Play against itself, then measure the agents by other players, with and without their search."""
    chosen = settings(config)
    if config.num_games < 2 or config.num_games % 2:
        raise ValueError(f"num_games={config.num_games}: an even number, since each opening is played with both sides")
    rl.search.mcts(games.make(config.game), config.opponent_simulations)  # raises for a wrong number before training
    count = rl.updates(chosen["total_steps"], chosen["num_envs"], chosen["num_steps"])
    per_call = max(1, count // 100)
    training = jdl.jit(jdl.seeds(jdl.scan(learner(config), per_call), run.seeds), donate=False)
    untrained = training.init(jax.random.key(0)).agent
    trained = jdl.fit(training, None, steps=count // per_call * per_call, log_every=per_call, run=run).state.agent
    seeds = range(len(run.seeds))
    found = [measured(config, of_seed(trained, index), of_seed(untrained, index)) for index in seeds]
    picture = pictured(config, of_seed(trained, 0))
    run.save_figure("A game with itself", picture, "The first seed; bars: share of the simulations.")
    return {name: [one[name] for one in found] for name in found[0]}


def of_seed(agent: Any, index: int) -> Any:
    """The agent of one seed."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), jax.device_get(agent))


def measured(config: Config, trained: Any, untrained: Any) -> dict[str, float]:
    """The final metrics of one agent."""
    game, chosen = games.make(config.game), settings(config)
    evaluate = rl.search.evaluation(network(config, game))
    counts = {"simulations": chosen["simulations"], "considered": chosen["considered"]}
    players = {
        "": rl.search.search_player(game, evaluate, trained.params, **counts),
        " (network alone)": rl.search.policy_player(game, evaluate, trained.params),
        " (untrained)": rl.search.search_player(game, evaluate, untrained.params, **counts),
    }
    if config.game == "tic_tac_toe":
        return {f"lost lines{which}": float(games.every_line(game, player).lost) for which, player in players.items()}
    return against_others(config, game, players)


def against_others(config: Config, game: games.Game, players: dict[str, games.Player]) -> dict[str, float]:
    """Points per game against players of known strength."""
    opponents = {
        "random": games.random_player(game),
        "minimax": games.minimax(game, DEPTH, games.open_fours),
        "MCTS": rl.search.mcts(game, config.opponent_simulations),
    }
    return {
        f"score against {name}{which}": games.match(game, player, opponent, games=config.num_games).score
        for name, opponent in opponents.items()
        for which, player in players.items()
    }


def pictured(config: Config, agent: Any) -> Any:
    """A game that the agent plays with itself."""
    game, chosen = games.make(config.game), settings(config)
    evaluate = rl.search.evaluation(network(config, game))

    def search(key: jax.Array, positions: Any) -> rl.search.Searched:
        counts = {"simulations": chosen["simulations"], "considered": chosen["considered"]}
        return rl.search.gumbel_search(game, evaluate, agent.params, key, positions, **counts, gumbel_scale=0.0)

    return games.picture(game, search)


def play(config: Config, run: Any, game: str, index: int, first: bool) -> None:
    """What `jdl play` calls: a game in the terminal against the agent of one of the run's seeds."""
    if game != config.game:
        raise ValueError(f"the agent of {run.path} plays {config.game}, not {game}: jdl play {config.game} {run.path}")
    rules, chosen = games.make(game), settings(config)
    params = of_seed(run.state.agent.params, index)
    evaluate = rl.search.evaluation(network(config, rules))
    counts = {"simulations": chosen["simulations"], "considered": chosen["considered"]}
    games.play(rules, rl.search.search_player(rules, evaluate, params, **counts), first=first)
