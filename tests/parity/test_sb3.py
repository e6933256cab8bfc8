"""One update of SAC, TD3, DQN and PPO beside that of Stable-Baselines3 with the same weights, batch and noise.

`make parity` builds the other side's environment and runs this; JDL_TORCH_PYTHON names its Python.
"""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces
from one_update import ACTIONS, BATCH, DISCOUNT, OPTIONS, RATE, SEEN, TAU, shaken, updated

import rl
from rl.types import Experience, TimeStep

PYTHON = os.environ.get("JDL_TORCH_PYTHON")
SIDE = Path(__file__).parent / "sb3_side.py"
STEPS, ENVS = 16, 2

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(PYTHON is None, reason="JDL_TORCH_PYTHON names no Python with PyTorch; run `make parity`"),
]


def numbered(name, layers):
    """Dense layers under the names that both sides know: they are counted as they are applied."""
    return {f"{name}/{i}/{part}": layer[part] for i, layer in enumerate(layers) for part in ("kernel", "bias")}


def torso_then(params, *heads):
    return [params["torso"]["Dense_0"], params["torso"]["Dense_1"], *(params[head] for head in heads)]


def of_each(critics):
    """The layers of the first critic, then those of the second."""
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], critics) for i in range(2)]
    return [one[layer] for one in each for layer in ("Dense_0", "Dense_1", "value")]


def sac(params, target):
    actor = params["actor"]
    return {
        **numbered("actor", torso_then(actor["network"], "mean", "log_std")),
        **numbered("critics", of_each(params["critics"])),
        **numbered("target_critics", of_each(target)),
        "log_temperature": actor["log_temperature"],
    }


def td3(params, target):
    return {
        **numbered("actor", torso_then(params["actor"], "mean")),
        **numbered("critics", of_each(params["critics"])),
        **numbered("target_actor", torso_then(target["actor"], "mean")),
        **numbered("target_critics", of_each(target["critics"])),
    }


def dqn(params, target):
    return {
        **numbered("values", torso_then(params, "values")),
        **numbered("target_values", torso_then(target, "values")),
    }


def ppo(params):
    hidden = [params[network][layer] for network in ("actor", "critic") for layer in ("Dense_0", "Dense_1")]
    stds = {"log_std": params["log_std"]} if "log_std" in params else {}
    return {**numbered("policy", [*hidden, params["policy"], params["value"]]), **stds}


def agree(case, given, before, after, tmp_path):
    """What each side has changed: the numbers themselves would agree wherever an update is small."""
    given = given | {"rate": RATE, "discount": DISCOUNT, "tau": TAU}
    given = given | {f"before/{name}": x for name, x in before.items()}
    paths = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(paths[0], **{name: np.asarray(x) for name, x in given.items()})
    subprocess.run([PYTHON, str(SIDE), case, *map(str, paths)], check=True, timeout=240)
    with np.load(paths[1]) as file:
        found = dict(file)
    assert found
    for name, theirs in found.items():
        start, ours = (np.asarray(tree[name.removeprefix("after/")], np.float64) for tree in (before, after))
        changed = np.abs(theirs - start).max()
        assert changed > 0, name
        np.testing.assert_allclose(ours - start, theirs - start, atol=1e-3 * changed, err_msg=name)


def batched(batch):
    arrays = {
        "observations": batch.observation, "actions": batch.action.reshape(BATCH, -1), "rewards": batch.reward,
        "next_observations": batch.next_observation, "dones": (batch.discount == 0).astype(jnp.float32),
    }  # fmt: skip
    return {f"batch/{name}": x for name, x in arrays.items()}


def test_sac(tmp_path):
    before, after, batch, key = updated(rl.sac(SEEN, ACTIONS, tau=TAU, **OPTIONS))
    given = batched(batch) | {"noise": jax.random.normal(key, (2, BATCH, 2))}
    agree("sac", given, sac(before.params, before.target), sac(after.params, after.target), tmp_path)


def test_td3(tmp_path):
    before, after, batch, key = updated(rl.td3(SEEN, ACTIONS, target_noise=0.4, policy_delay=1, tau=TAU, **OPTIONS))
    given = batched(batch) | {"noise": jax.random.normal(key, (BATCH, 2))}
    agree("td3", given, td3(before.params, before.target), td3(after.params, after.target), tmp_path)


def test_dqn(tmp_path):
    actions = spaces.Discrete(3)
    before, after, batch, _ = updated(rl.dqn(SEEN, actions, double=False, huber=1.0, **OPTIONS), actions)
    agree("dqn", batched(batch), dqn(before.params, before.target), dqn(after.params, after.target), tmp_path)


@pytest.mark.parametrize("actions", [spaces.Discrete(3), ACTIONS], ids=["discrete", "continuous"])
def test_ppo(actions, tmp_path):
    """On a rollout of another policy, so that ratios are clipped, with episodes that end and that are cut off."""
    options = {"normalize_advantages": False, "clip_value": None, "entropy_weight": 0.01, "value_weight": 0.5}
    algorithm = rl.ppo(
        SEEN, actions, optimizer=optax.sgd(RATE), num_steps=STEPS, epochs=1, minibatches=1, discount=DISCOUNT,
        gae_lambda=0.95, clip=0.2, **options,
    )  # fmt: skip
    agent = algorithm.init(jax.random.key(1))
    agent = agent.replace(params=shaken(agent.params))
    random = np.random.default_rng(0)
    seen = jnp.asarray(random.normal(size=(STEPS + 1, ENVS, 3)), jnp.float32)
    ends = random.random((2, STEPS, ENVS)) < 0.15
    terminated, truncated = ends[0], ends[1] & ~ends[0]
    assert terminated.any()
    assert truncated.any()
    keys = jax.random.split(jax.random.key(2), STEPS)
    nothing, timestep = jnp.zeros(ENVS, bool), TimeStep(seen[:-1], jnp.zeros((STEPS, ENVS), bool))
    action = jnp.stack([algorithm.act(agent, (), TimeStep(seen[t], nothing), keys[t], False)[0] for t in range(STEPS)])
    extras = algorithm.recall(agent, (), timestep, action)
    extras = extras._replace(log_prob=extras.log_prob + 0.3 * jax.random.normal(jax.random.key(3), (STEPS, ENVS)))
    experience = Experience(
        timestep=timestep, action=action, extras=extras,
        reward=jnp.asarray(random.normal(size=(STEPS, ENVS)), jnp.float32), terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated), valid=jnp.ones((STEPS, ENVS), bool), next_observation=seen[1:],
        last=TimeStep(seen[-1], nothing), carry=(),
    )  # fmt: skip
    after, _ = algorithm.update(agent, experience, jax.random.key(4))
    given = {
        "observations": seen[:-1], "next_observations": seen[1:], "actions": action, "rewards": experience.reward,
        "log_probs": extras.log_prob, "terminated": terminated, "truncated": truncated,
    }  # fmt: skip
    given = {f"rollout/{name}": x for name, x in given.items()}
    agree("ppo", given, ppo(agent.params), ppo(after.params), tmp_path)
