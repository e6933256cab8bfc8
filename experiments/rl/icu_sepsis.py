"""Better treatments from what clinicians did, in ICU-Sepsis: learned offline, and judged by exact values.

Run:       jdl run icu_sepsis --method discrete_cql --seeds 5
Result:    not measured yet

A benchmark for algorithms, not for medicine: its patients are a table fitted to records.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

import jdl
import rl
from rl import offline


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters."""

    method: Literal["bc", "iql", "discrete_cql"] = "discrete_cql"
    episodes: int = 20_000  # of the clinicians, recorded
    updates: int = 20_000
    batch_size: int = 256
    discount: float = 1.0
    alpha: float = 0.05  # of CQL
    expectile: float = 0.7  # of IQL
    beta: float = 20.0  # of IQL
    softness: float = 0.01  # share of random treatments in the policy whose value is estimated by importance sampling
    evaluation_updates: int = 10_000  # of fitted Q evaluation


SMOKE = {"episodes": 200, "updates": 8, "evaluation_updates": 8}
RECORDS = {
    method.removeprefix("discrete_"): jdl.Record(
        {"method": method},
        seeds=5,
        bars={"return (exact)": ">= 0.7819"},
        shown=("return (exact)", "error of fitted Q evaluation", "error of importance sampling"),
        beside="clinicians 0.7818, optimum 0.8751, both exact",
    )
    for method in ("discrete_cql", "iql", "bc")
}
OPTIONS = {"bc": (), "iql": ("expectile", "beta", "discount"), "discrete_cql": ("alpha", "discount")}
ENV, STEPS = "ICUSepsis-v0", 500
DATA_SEED = 1


def algorithm(config: Config, observation_space: Any, action_space: Any) -> rl.Algorithm:
    """The method."""
    options = {name: getattr(config, name) for name in OPTIONS[config.method]}
    return getattr(offline, config.method)(observation_space, action_space, **options)


def learner(config: Config) -> jdl.Learner:
    """The learner of one run."""
    spaces = rl.make_vec(ENV, 1)
    one = algorithm(config, spaces.single_observation_space, spaces.single_action_space)
    return offline.learner(one, spaces.single_action_space, config.batch_size)


def recorded(policy: np.ndarray, episodes: int) -> offline.Dataset:
    """Episodes of a policy [states, actions], drawn from the table."""
    rules, draw = rl.envs.icu_sepsis_table(), np.random.default_rng(DATA_SEED)
    upper = rules.probability.cumsum(-1)

    def chosen(limits: np.ndarray) -> np.ndarray:
        return (draw.random((len(limits), 1)) >= limits[:, :-1]).sum(1)

    state = draw.choice(len(policy), episodes, p=rules.start)
    running, steps = np.ones(episodes, bool), []
    while running.any():
        action = chosen(policy[state].cumsum(-1))
        place = state, action, chosen(upper[state, action])
        steps.append((state, action, rules.reward[place], rules.terminated[place], running))
        running, state = running & ~rules.terminated[place], rules.next_state[place]
    states, actions, rewards, ends, valid = (np.stack(column) for column in zip(*steps, strict=True))
    states, lengths = np.concatenate([states, state[None]]), valid.sum(0)
    made = [
        offline.Episode(states[: n + 1, i], actions[:n, i], rewards[:n, i], bool(ends[n - 1, i]))
        for i, n in enumerate(lengths)
    ]
    vector = rl.make_vec(ENV, 1)
    return offline.from_episodes(made, vector.single_observation_space, vector.single_action_space, ENV)


def main(config: Config, run: jdl.Run) -> dict[str, Any]:
    """Learn from recorded treatments, compute the exact value of what was learned, and how far estimates are off."""
    rules, behavior = rl.envs.icu_sepsis_table(), rl.envs.clinicians()
    data = recorded(behavior, config.episodes)
    per_call = max(1, config.updates // 100)
    training = jdl.jit(jdl.seeds(jdl.scan(learner(config), per_call), run.seeds))
    steps = config.updates // per_call * per_call
    agents = jdl.fit(training, data.transitions, steps=steps, log_every=per_call, run=run).state.agent
    one = algorithm(config, data.observation_space, data.action_space)
    policies = rl.greedy_policies(one, agents, rules)
    exact = np.array([value(policy, rules) for policy in policies])
    return {
        "return (exact)": exact,
        "return (clinicians)": np.full(len(exact), value(behavior, rules)),
        "error of fitted Q evaluation": np.abs(fitted(config, one, agents, data) - exact),
        "error of importance sampling": weighted(config, policies, behavior, data, rules),
    }


def value(policy: np.ndarray, rules: Any) -> float:
    """The exact probability of survival."""
    return rl.envs.expected_return(policy, rules, STEPS)


def fitted(config: Config, one: rl.Algorithm, agents: Any, data: offline.Dataset) -> np.ndarray:
    """Estimates of the agents' values by a critic."""
    return offline.fitted_q_evaluation(
        one, agents, data, key=jax.random.key(0), discount=config.discount, updates=config.evaluation_updates
    )


def weighted(
    config: Config, policies: np.ndarray, behavior: np.ndarray, data: offline.Dataset, rules: Any
) -> np.ndarray:
    """How far importance sampling is off, for the agents' treatments with a share of random ones."""
    errors = []
    for policy in policies:
        soft = np.full(behavior.shape, config.softness / behavior.shape[1])
        soft[np.arange(len(policy)), policy] += 1 - config.softness
        place = data.observation, data.action
        ratio = np.log(soft[place]) - np.log(behavior[place])
        found = offline.weighted_importance_sampling(data, ratio, config.discount).value
        errors.append(abs(found - value(soft, rules)))
    return np.array(errors)
