"""The other side of `test_sb3.py`: Stable-Baselines3 takes over weights, a batch and the noise, and makes one update.

    python sb3_side.py CASE IN.npz OUT.npz

Arrays are named as "before/NETWORK/LAYER/kernel"; layers are counted in the order in which they are applied.
"""

import sys

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples


class Spaces(gymnasium.Env):
    """An environment that is never stepped."""

    def __init__(self, action_space):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = action_space


def linear(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def take_over(module, arrays, name):
    for i, layer in enumerate(linear(module)):
        layer.weight.data = tensor(arrays[f"before/{name}/{i}/kernel"].T)
        layer.bias.data = tensor(arrays[f"before/{name}/{i}/bias"])


def layers(module, name):
    found = {}
    for i, layer in enumerate(linear(module)):
        found[f"{name}/{i}/kernel"] = layer.weight.detach().numpy().T
        found[f"{name}/{i}/bias"] = layer.bias.detach().numpy()
    return found


def made(kind, arrays, action_space, net_arch, **options):
    """An agent with plain gradient descent, whose steps are as long as ours."""
    rate = float(arrays["rate"])
    kwargs = {"net_arch": net_arch, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    model = kind(
        "MlpPolicy", Spaces(action_space), learning_rate=rate, gamma=float(arrays["discount"]), policy_kwargs=kwargs,
        device="cpu", **options,
    )  # fmt: skip
    model.set_logger(Logger(None, []))
    model._update_learning_rate = lambda optimizers: None
    return model


def learn_from(model, arrays):
    """Its replay gives the one batch."""
    batch = {name: tensor(arrays[f"batch/{name}"]) for name in ("observations", "actions", "next_observations")}
    column = {name: tensor(arrays[f"batch/{name}"])[:, None] for name in ("dones", "rewards")}
    model.replay_buffer.sample = lambda *args, **kwargs: ReplayBufferSamples(**batch, **column)
    model.train(1, len(column["rewards"]))


def sac(arrays):
    model = made(SAC, arrays, spaces.Box(-1, 1, (2,), np.float32), [256, 256], tau=float(arrays["tau"]))
    model.ent_coef_optimizer = torch.optim.SGD([model.log_ent_coef], lr=float(arrays["rate"]))
    model.log_ent_coef.data = tensor(arrays["before/log_temperature"].reshape(1))
    model.actor.action_dist.epsilon = 0.0  # it keeps their logarithm from zero, and would be a difference
    networks = {"actor": model.actor, "critics": model.critic, "target_critics": model.critic_target}
    for name, module in networks.items():
        take_over(module, arrays, name)
    noise = iter((tensor(arrays["noise"][1]), tensor(arrays["noise"][0])))  # of the states, and of those that follow
    torch.distributions.Normal.rsample = lambda self, shape=None: self.loc + self.scale * next(noise)
    learn_from(model, arrays)
    after = {"log_temperature": model.log_ent_coef.detach().numpy()[0]}
    return after | {key: x for name, module in networks.items() for key, x in layers(module, name).items()}


def td3(arrays):
    model = made(
        TD3, arrays, spaces.Box(-1, 1, (2,), np.float32), [256, 256], tau=float(arrays["tau"]), policy_delay=1,
        target_policy_noise=0.4,
    )  # fmt: skip
    # Its loss is the square, ours half of it, as SAC's is in both.
    model.critic.optimizer.param_groups[0]["lr"] /= 2
    networks = {
        "actor": model.actor, "critics": model.critic, "target_actor": model.actor_target,
        "target_critics": model.critic_target,
    }  # fmt: skip
    for name, module in networks.items():
        take_over(module, arrays, name)
    noise = tensor(arrays["noise"])
    torch.Tensor.normal_ = lambda self, mean=0, std=1: self.copy_(mean + std * noise)
    learn_from(model, arrays)
    return {key: x for name, module in networks.items() for key, x in layers(module, name).items()}


def dqn(arrays):
    model = made(DQN, arrays, spaces.Discrete(3), [256, 256], max_grad_norm=1e9)
    networks = {"values": model.q_net, "target_values": model.q_net_target}
    for name, module in networks.items():
        take_over(module, arrays, name)
    learn_from(model, arrays)
    return layers(model.q_net, "values")


def ppo(arrays):
    steps, envs = arrays["rollout/rewards"].shape
    continuous = arrays["rollout/actions"].ndim == 3
    action_space = spaces.Box(-1, 1, (2,), np.float32) if continuous else spaces.Discrete(3)
    model = made(
        PPO, arrays, action_space, [64, 64], n_steps=steps * envs, batch_size=steps * envs, n_epochs=1,
        gae_lambda=0.95, clip_range=0.2, normalize_advantage=False, ent_coef=0.01, vf_coef=0.25, max_grad_norm=1e9,
    )  # fmt: skip
    take_over(model.policy, arrays, "policy")
    if continuous:
        model.policy.log_std.data = tensor(arrays["before/log_std"])
    buffer = type(model.rollout_buffer)(
        steps, model.observation_space, action_space, gae_lambda=0.95, gamma=float(arrays["discount"]), n_envs=envs
    )
    value = lambda seen: model.policy.predict_values(tensor(seen))[:, 0].detach()  # noqa: E731
    given = {name.split("/")[1]: array for name, array in arrays.items() if name.startswith("rollout/")}
    first = np.ones(envs, bool)
    for t in range(steps):
        # As its `collect_rollouts` does: what an episode that was cut off would have brought joins its last reward.
        cut = given["truncated"][t]
        reward = given["rewards"][t] + cut * float(arrays["discount"]) * value(given["next_observations"][t]).numpy()
        action = given["actions"][t].reshape(envs, -1)
        seen = given["observations"][t]
        buffer.add(seen, action, reward, first, value(seen)[:, None], tensor(given["log_probs"][t]))
        first = given["terminated"][t] | cut
    buffer.compute_returns_and_advantage(value(given["next_observations"][-1])[:, None], first)
    model.rollout_buffer = buffer
    model.train()
    after = {"log_std": model.policy.log_std.detach().numpy()} if continuous else {}
    return after | layers(model.policy, "policy")


if __name__ == "__main__":
    case, given, out = sys.argv[1:]
    with np.load(given) as file:
        result = {"sac": sac, "td3": td3, "dqn": dqn, "ppo": ppo}[case](dict(file))
    np.savez(out, **{f"after/{name}": array for name, array in result.items()})
