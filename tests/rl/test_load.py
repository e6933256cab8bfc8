"""An agent from its run directory acts as the one that was trained."""

from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

import jdl
import rl
from jdl import experiment
from rl.types import TimeStep

PPO = str(Path(__file__).parent.parent.parent / "experiments" / "ppo.py")


def test_a_loaded_agent_acts_as_it_did(tmp_path):
    module = experiment.find(PPO)
    config = module.Config(total_steps=2048, num_episodes=2, rollout=32)
    run = jdl.run(module, config, seeds=2, path=tmp_path / "run")
    assert run.result["metrics"].keys() == {"return", "length", "return (twin)"}
    env = gymnasium.make("CartPole-v1")
    algorithm = module.algorithm(config, rl.envs.make("CartPole-v1"))
    for index in (0, 1):
        agent = rl.load(tmp_path / "run", index)
        params = jax.tree.map(lambda leaf, i=index: leaf[i], jax.device_get(agent.run.state.agent))
        observation, _ = env.reset(seed=index)
        for _ in range(10):
            action = agent.act(observation)
            timestep = TimeStep(observation[None], np.ones(1, bool))
            assert action == algorithm.act(params, (), timestep, jax.random.key(0), True)[0][0]
            observation, *_ = env.step(action)
    with pytest.raises(ValueError, match=r"index=2\): .* has 2 seed"):
        rl.load(tmp_path / "run", 2)
