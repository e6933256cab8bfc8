"""The algorithms that probes and laws are held to; to add one, add its name."""

import optax

import rl

DISCOUNT = 0.5
MAKE = {
    "ppo": lambda env, **options: rl.ppo(
        env.observation_space, env.action_space, rl.networks.MLP(lambda x: x, (16,)),
        **{"optimizer": optax.adam(0.01), "rollout": 8, "discount": DISCOUNT, "entropy_weight": 0.0} | options,
    ),
    "a2c": lambda env, **options: rl.a2c(
        env.observation_space, env.action_space, rl.networks.MLP(lambda x: x, (16,)),
        **{"optimizer": optax.adam(0.01), "discount": DISCOUNT} | options,
    ),
    "reinforce": lambda env, **options: rl.reinforce(
        env.observation_space, env.action_space, rl.networks.MLP(lambda x: x, (16,)),
        **{"optimizer": optax.adam(0.01), "rollout": 16, "discount": DISCOUNT} | options,
    ),
}  # fmt: skip
