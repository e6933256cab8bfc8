"""Q-learning, SARSA and expected SARSA on toy text environments, beside the optimum that value iteration finds.

Run:       jdl run td --method q_learning --env FrozenLake-v1 --seeds 10      (CliffWalking-v1, Taxi-v4, ...)
Result:    return (exact) 0.7402 [0.7402, 0.7402]; return (optimum) 0.7402 [0.7402, 0.7402] (10 seeds, 46 s)
"""

import dataclasses
from typing import Any, Literal

import optax
from gymnasium import Space

import jdl
import rl


@dataclasses.dataclass(frozen=True)
class Config(rl.Training):
    """Hyper-parameters; what is None is tuned for the environment, or else common."""

    method: Literal["q_learning", "sarsa", "expected_sarsa"] = "q_learning"
    env: str = "FrozenLake-v1"
    learning_rate: float | None = None
    visits: float | None = None  # after as many visits of a state and action its learning rate has about halved
    epsilon: float | None = None  # the share of random actions at the start; it falls to zero over the run
    discount: float | None = None
    num_episodes: int = 1000  # of the final evaluation, for each seed


SMOKE = {"total_steps": 64, "num_episodes": 2}
RECORDS = {
    f"{method}-{name}": jdl.Record(
        {"method": method, "env": env},
        seeds=10,
        bars={"return (exact)": f">= {bar}"},
        shown=("return (exact)", "return (optimum)"),
        beside="optimum by value iteration; bar: within 2% of it",
    )
    for name, env, bar in (
        ("frozen_lake", "FrozenLake-v1", 0.725),
        ("cliff_walking", "CliffWalking-v1", -13.26),
        ("taxi", "Taxi-v4", 7.77),
    )
    for method in ("q_learning", "sarsa", "expected_sarsa")
} | {
    "q_learning-icu_sepsis": jdl.Record(
        {"env": "ICUSepsis-v0"},
        seeds=8,
        bars={"return (exact)": ">= 0.86"},
        shown=("return (exact)", "return (optimum)"),
        beside="random treatments 0.7801, clinicians 0.7818, optimum 0.8751, all exact",
    ),
}


METHODS = {"q_learning": rl.q_learning, "sarsa": rl.sarsa, "expected_sarsa": rl.expected_sarsa}
COMMON = {
    "total_steps": 400_000,
    "num_envs": 8,
    "learning_rate": 0.2,
    "visits": 1e9,
    "epsilon": 1.0,
    "discount": 0.99,
}
TUNED: dict[str, dict[str, Any]] = {
    "FrozenLake-v1": {"learning_rate": 1.0, "visits": 10.0},
    "CliffWalking-v1": {"discount": 0.999},
    "Taxi-v4": {"total_steps": 1_000_000},
    "ICUSepsis-v0": {
        "total_steps": 2_000_000,
        "learning_rate": 1.0,
        "visits": 3.0,
        "epsilon": 0.15,  # each of 17,900 pairs is met about a hundred times: random treatments waste them on poor ones
        "discount": 1.0,
    },
}
# A method that backs up the action it takes next keeps away from the cliff for as long as it explores. Initial values
# of zero, above all true ones, make it try everything once, without random actions.
ON_POLICY_CLIFF = {"sarsa": {"epsilon": 0.0, "learning_rate": 0.05}, "expected_sarsa": {"epsilon": 0.0}}


def settings(config: Config) -> dict[str, Any]:
    """The config with what is tuned for its environment and method."""
    cliff = {**TUNED["CliffWalking-v1"], **ON_POLICY_CLIFF.get(config.method, {})}
    return rl.settings(config, COMMON, {**TUNED, "CliffWalking-v1": cliff})


def algorithm(config: Config, observation_space: Space, action_space: Space) -> rl.Algorithm:
    """The method, exploring less and less."""
    chosen = settings(config)
    return METHODS[config.method](
        observation_space,
        action_space,
        learning_rate=lambda visits: chosen["learning_rate"] / (1 + visits / chosen["visits"]) ** 0.7,
        epsilon=optax.linear_schedule(chosen["epsilon"], 0.0, int(0.9 * chosen["total_steps"])),
        discount=chosen["discount"],
    )


learner, main = rl.experiment(algorithm, settings, also=rl.exact_returns)
