"""highway-env on the host: the two sensors beside a loop over the vehicles, ends of episodes, the missing package."""

import importlib.util
import sys

import flax.linen as nn
import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import rl
from rl.envs.libraries import gymnasium_id
from rl.networks import MLP, Fusion, MinAtarCNN, torso

installed = pytest.mark.skipif(importlib.util.find_spec("highway_env") is None, reason="highway-env is not installed")
IDLE = 1


@installed
def test_both_sensors_are_those_of_a_loop_over_the_vehicles():
    env = gymnasium.make("HighwaySensors-v0")
    observation, _ = env.reset(seed=3)
    for action in (IDLE, 0, 4):  # to the left, slower
        others, grid = observation
        assert env.observation_space.contains(observation)
        world = env.unwrapped
        own = world.vehicle
        places = np.array([vehicle.position - own.position for vehicle in world.road.vehicles])
        seen = np.zeros((24, 9), bool)
        for x, y in places:
            if -20 <= x < 100 and -18 <= y < 18:
                seen[int((x + 20) // 5), int((y + 18) // 4)] = True
        np.testing.assert_array_equal(grid[..., 0], seen)
        assert seen[4, 4]  # the car itself
        lanes = [int((4 * lane - own.position[1] + 18) // 4) for lane in range(3)]
        assert {*np.flatnonzero(grid[4, :, 1])} == {*lanes}
        ahead = sorted((v for v in world.road.vehicles if v.position[0] > own.position[0]), key=lambda v: v.position[0])
        for row, vehicle in zip(others[1:], ahead, strict=False):
            away, faster = vehicle.position - own.position, vehicle.velocity - own.velocity
            np.testing.assert_allclose(row, [1, away[0] / 200, away[1] / 12, *faster / 80], atol=1e-5)
        observation, *_ = env.step(action)
    env.close()


@installed
def test_a_crash_terminates_and_half_a_minute_truncates():
    env = gymnasium.make(gymnasium_id("highway-fast-v0"))
    env.reset(seed=0)
    ends = []
    for _ in range(30):
        *_, terminated, truncated, info = env.step(3)  # faster
        ends.append((terminated, truncated))
        if terminated or truncated:
            break
    assert ends[-1] == (True, False)
    assert info["crashed"]
    env.reset(seed=0)
    env.unwrapped.time = 29
    *_, terminated, truncated, info = env.step(IDLE)
    assert truncated
    assert not terminated
    env.close()


@installed
def test_the_network_has_a_torso_for_each_sensor():
    others, grid = gymnasium.make("HighwaySensors-v0").observation_space
    network = torso(spaces.Tuple((others, grid)), (8, 6), nn.relu)
    assert isinstance(network, Fusion)
    assert [type(part) for part in network.parts] == [MLP, MinAtarCNN]
    seen = rl.spaces.zeros(spaces.Tuple((others, grid)), 2)
    params = jax.eval_shape(network.init, jax.random.key(0), seen)["params"]
    assert params["own_0"]["kernel"].shape == (25, 8)
    assert params["own_1"]["kernel"].shape == (128, 8)
    assert params["mixing_0"]["kernel"].shape == (16, 6)


def test_grids_among_the_parts_have_convolutions():
    grid, vector = spaces.Box(0, 1, (10, 10, 4), np.bool_), spaces.Box(-1, 1, (3,), np.float32)
    space = spaces.Dict({"map": grid, "rest": spaces.Tuple((vector,))})
    assert rl.spaces.has_grid(space)
    assert not rl.spaces.has_image(space)
    assert not rl.spaces.has_grid(spaces.Dict({"small": spaces.Box(0, 1, (7, 10, 4), np.bool_), "rest": vector}))
    params = jax.eval_shape(rl.ppo(space, spaces.Discrete(2)).init, jax.random.key(0)).params
    assert sum("Conv_0" in "/".join(map(str, path)) for path, _ in jax.tree.leaves_with_path(params)) == 4


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "highway_env", None)
    for name in ("highway-fast-v0", "HighwaySensors-v0"):
        monkeypatch.delitem(gymnasium.registry, "highway-fast-v0", raising=False)
        with pytest.raises(LookupError, match=r"highway_env is not installed .*: pip install 'jdl\[highway\]'"):
            rl.make_vec(name, 1)
