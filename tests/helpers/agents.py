"""The algorithms that probes and laws are held to; to add one, add its name."""

import optax
import pytest

import rl

DISCOUNT = 0.5
NUM_ENVS = 8


def torso():
    return rl.networks.MLP(lambda x: x, (16,))


MAKE = {
    "ppo": lambda env, **options: rl.ppo(
        env.observation_space, env.action_space, torso(),
        **{"optimizer": optax.adam(0.01), "num_steps": 8, "discount": DISCOUNT, "entropy_weight": 0.0} | options,
    ),
    "a2c": lambda env, **options: rl.a2c(
        env.observation_space, env.action_space, torso(),
        **{"optimizer": optax.adam(0.01), "discount": DISCOUNT} | options,
    ),
    "reinforce": lambda env, **options: rl.reinforce(
        env.observation_space, env.action_space, torso(),
        **{"optimizer": optax.adam(0.01), "num_steps": 16, "discount": DISCOUNT} | options,
    ),
    "dqn": lambda env, **options: rl.dqn(
        env.observation_space, env.action_space, torso(),
        **{
            "optimizer": optax.adam(0.01), "discount": DISCOUNT, "num_envs": NUM_ENVS, "batch_size": 32,
            "capacity": 1024, "learning_starts": 64, "target_every": 10,
        } | options,
    ),
    "dqn with everything": lambda env, **options: MAKE["dqn"](
        env, **{"double": True, "dueling": True, "n_step": 3, "prioritized": True, "updates_per_rollout": 2} | options
    ),
}  # fmt: skip

_FROM_REPLAY = {
    "optimizer": optax.adam(0.01), "discount": DISCOUNT, "num_envs": NUM_ENVS, "num_steps": 4, "batch_size": 32,
    "updates_per_rollout": 1, "capacity": 1024, "learning_starts": 64, "tau": 0.1,
}  # fmt: skip
CONTINUOUS = {
    name: lambda env, name=name, **options: getattr(rl, name)(
        env.observation_space, env.action_space, torso(), **_FROM_REPLAY | options
    )
    for name in ("sac", "td3", "ddpg", "tqc")
}
CONTINUOUS["crossq"] = lambda env, **options: rl.crossq(
    env.observation_space, env.action_space, torso(),
    **{name: value for name, value in _FROM_REPLAY.items() if name != "tau"}
    | {"width": 64, "optimizer": optax.adam(3e-3, b1=0.5)} | options,
)  # fmt: skip


# What others in a battery see as well runs in `make test-slow`, or for diagnosis alone: it takes minutes to compile.
def some_slow(*slow, diagnosis=()):
    marks = dict.fromkeys(slow, pytest.mark.slow) | dict.fromkeys(diagnosis, pytest.mark.diagnosis)
    return [pytest.param(name, marks=marks.get(name, ())) for name in MAKE]


def on_runners(every, *quick, names=None, on_host=(), apart=()):
    """Runners with algorithms. What the host adds, one algorithm of each kind shows; the others are for diagnosis.

    So are those that stand `apart`: another one runs all of their code that the test is about.
    """

    def mark(runner, name):
        if runner == "device":
            return () if name in quick else pytest.mark.diagnosis if name in apart else pytest.mark.slow
        return pytest.mark.slow if name in on_host else pytest.mark.diagnosis

    pairs = [(runner, name) for runner in ("device", "host") for name in names or every]
    return pytest.mark.parametrize(("runner", "name"), [pytest.param(*pair, marks=mark(*pair)) for pair in pairs])


DISCRETE_ONLY = "dqn", "dqn with everything"
