"""An agent from its run directory acts as the one that was trained."""

from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

import jdl
import rl
from jdl.experiment import execute, find
from rl.runners.training import Trained
from rl.types import TimeStep

PPO = str(Path(__file__).parent.parent.parent / "experiments" / "rl" / "ppo.py")


@pytest.mark.medium
def test_a_loaded_agent_acts_as_it_did(tmp_path, monkeypatch, capfd):
    module = find.find(PPO)
    config = module.Config(total_steps=2048, num_episodes=2, num_steps=32)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    run = jdl.run(module, config, seeds=2, path=tmp_path / "run")
    assert (run.path / "video.gif").is_file()
    assert "XDG_RUNTIME_DIR" not in capfd.readouterr().err  # which pygame's display driver would miss
    assert run.result["metrics"].keys() == {"return", "length", "return (twin)"}
    env = gymnasium.make("CartPole-v1")
    algorithm = module.algorithm(config, env.observation_space, env.action_space)
    act = jax.jit(algorithm.act, static_argnums=4)
    for index in (0, 1):
        agent = rl.load(tmp_path / "run", index)
        params = jax.tree.map(lambda leaf, i=index: leaf[i], jax.device_get(agent.run.state.agent))
        observation, _ = env.reset(seed=index)
        for _ in range(10):
            action = agent.act(observation)
            timestep = TimeStep(observation[None], np.ones(1, bool))
            assert action == act(params, (), timestep, jax.random.key(0), True)[0][0]
            other = agent.act(observation, np.arange(2) != action)  # a mask that forbids the greedy action
            assert other == 1 - action
            observation, *_ = env.step(action)
    with pytest.raises(ValueError, match=r"index=2\): .* has 2 seed"):
        rl.load(tmp_path / "run", 2)
    with pytest.raises(ValueError, match=r"trained on CartPole-v1, whose .* the shape \(4,\); .* \(6,\)"):
        rl.load(tmp_path / "run").act(np.zeros(6, np.float32))
    with pytest.raises(ValueError, match=r"does not fit Acrobot-v1, whose observations are Box.*whose actions are"):
        rl.evaluate(algorithm, params, "Acrobot-v1", episodes=2)


def test_an_environment_without_a_twin_trains_on_the_host_and_says_so(tmp_path, monkeypatch, capsys):
    module = find.find(PPO)
    chosen = []

    def train(make, settings, run):
        chosen.append(settings["runner"])
        return Trained(None, None, {"return": np.zeros(1)})

    monkeypatch.setattr("rl.runners.training.train", train)
    for env, runner in (("LunarLander-v3", "host"), ("CartPole-v1", "device")):
        jdl.run(module, module.Config(env=env), seeds=1, path=tmp_path / runner)
        told = f"{env} has no compiled twin: training on the host" in capsys.readouterr().err
        assert told == (runner == "host")
    assert chosen == ["host", "device"]


@pytest.mark.slow
def test_seeds_in_processes_of_their_own_are_those_alone(tmp_path):
    module = find.find(PPO)
    config = module.Config(runner="host", total_steps=1024, num_episodes=2, num_steps=32)
    run = jdl.run(module, config, seeds=[0, 3], path=tmp_path / "several")
    alone = jdl.run(module, config, seeds=[3], path=tmp_path / "alone")
    assert run.final["return"][1] == alone.final["return"][0]
    together = {row["step"]: row["train/return"][1] for row in run.rows}
    assert together == {row["step"]: row["train/return"][0] for row in alone.rows}
    agents = rl.load(tmp_path / "several", 1), rl.load(tmp_path / "alone")
    params = [jax.tree.leaves(jax.device_get(agent.run.state.agent.params)) for agent in agents]
    for one, other in zip(*params, strict=True):
        np.testing.assert_array_equal(one, other)
    assert agents[0].act(np.zeros(4, np.float32)) in (0, 1)
    (tmp_path / "several" / "result.json").unlink()
    (tmp_path / "several" / "seed-3" / "result.json").unlink()
    before = (tmp_path / "several" / "seed-0" / "result.json").stat().st_mtime_ns
    again = execute.execute(jdl.Run(tmp_path / "several"))  # the seed that was not finished, and no other
    assert again.final == run.final
    assert (tmp_path / "several" / "seed-0" / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_process_that_fails_is_named(tmp_path):
    config = find.find(PPO).Config(runner="host", total_steps=4096, minibatches=10_000)
    with pytest.raises(ChildProcessError, match=r"seed-[01] failed: ValueError: ppo\(minibatches=10000\)"):
        jdl.run(find.find(PPO), config, seeds=2, path=tmp_path / "run")


def test_to_act_ahead_is_for_the_host(tmp_path):
    with pytest.raises(ValueError, match="ahead=True: on the device acting is a part of the step"):
        jdl.run(find.find(PPO), find.find(PPO).Config(ahead=True), seeds=1, path=tmp_path / "run")


@pytest.mark.medium
def test_a_loaded_agent_remembers_until_it_is_reset(tmp_path):
    module = find.find(str(Path(PPO).with_name("recurrent_ppo.py")))
    config = module.Config(total_steps=1024, num_episodes=2, cell="lstm")
    jdl.run(module, config, seeds=2, path=tmp_path / "run")
    agent = rl.load(tmp_path / "run", 1)
    env = gymnasium.make("CartPoleNoVel-v1")
    algorithm = module.algorithm(config, env.observation_space, env.action_space)
    params = jax.tree.map(lambda leaf: leaf[1], jax.device_get(agent.run.state.agent))
    seen = np.random.default_rng(0).uniform(-2, 2, (30, 4)).astype(np.float32)
    for _ in range(2):
        carry, differing = algorithm.initial_carry(1), 0
        for number, observation in enumerate(seen):
            step = TimeStep(observation[None], np.full(1, number == 0))
            action, carry, _ = algorithm.act(params, carry, step, jax.random.key(0), True)
            assert agent.act(observation) == action[0]
            fresh = TimeStep(observation[None], np.ones(1, bool))
            differing += algorithm.act(params, carry, fresh, jax.random.key(0), True)[0][0] != action[0]
        assert differing  # what came before counts
        agent.reset()
