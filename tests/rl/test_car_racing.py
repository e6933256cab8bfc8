"""CarRacing with two sensors beside the original, stepped frame by frame."""

import gymnasium
import numpy as np
import pytest

import rl
from rl.envs.car_racing import CarRacingSensors, camera, original
from rl.envs.libraries import extra_of


@pytest.fixture(scope="module", autouse=True)
def _box2d():
    pytest.importorskip("Box2D", reason="the box2d extra is not installed")  # imports it with its warnings ignored


def test_an_action_lasts_some_frames_of_the_original():
    ours, theirs = CarRacingSensors(skip=3, frames=2), gymnasium.make("CarRacing-v3")
    observation, _ = ours.reset(seed=5)
    picture, _ = theirs.reset(seed=5)
    past = [camera(picture)] * 2
    car = theirs.unwrapped.car
    for steering, pedals in ((0.0, 1.0), (0.3, 0.8), (-0.2, 0.5), (0.0, -0.4)):
        assert ours.observation_space.contains(observation)
        np.testing.assert_array_equal(observation["camera"], np.stack(past, -1))
        speed = np.hypot(*car.hull.linearVelocity) / 100
        state = [speed, car.hull.angularVelocity / 5, car.wheels[0].joint.angle / 0.4]
        np.testing.assert_allclose(observation["state"], state, atol=1e-6)
        observation, reward, *ends, _ = ours.step(np.array([steering, pedals], np.float32))
        total = 0.0
        for _ in range(3):
            picture, one, *_ = theirs.step(np.array([steering, max(pedals, 0), max(-pedals, 0)], np.float32))
            total += one
        past = [past[1], camera(picture)]
        assert reward == pytest.approx(total)
        assert ends == [False, False]
    assert observation["state"][0] > 0.05  # it has moved
    np.testing.assert_array_equal(observation["camera"], np.stack(past, -1))


def test_a_lap_terminates_within_an_action_and_the_last_picture_is_drawn():
    env = CarRacingSensors(skip=4)
    env.reset(seed=5)
    env.step(np.array([0, 1], np.float32))
    env.unwrapped.new_lap = True
    before = env.unwrapped.t
    observation, reward, terminated, truncated, info = env.step(np.array([0, 1], np.float32))
    assert env.unwrapped.t == pytest.approx(before + 1 / 50)  # one frame
    assert terminated
    assert not truncated
    assert info["lap_finished"]
    assert reward > -0.2
    np.testing.assert_array_equal(
        observation["camera"][..., 0], camera(type(env.unwrapped)._render(env.unwrapped, "state_pixels"))
    )


def test_the_camera_is_a_mean_of_pixels_without_the_strip():
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    seen = camera(picture)
    assert seen.shape == (42, 48)
    for row, column in ((0, 0), (41, 47), (20, 5)):
        four = picture[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(4, 3).mean(0)
        assert abs(0.299 * four[0] + 0.587 * four[1] + 0.114 * four[2] - seen[row, column]) <= 0.501
    picture[84:] = 0
    np.testing.assert_array_equal(seen, camera(picture))


def test_pedals_fill_the_originals_box():
    box = gymnasium.make("CarRacing-v3").action_space
    for given, wanted in (
        ((-1, 1), (-1, 1, 0)),
        ((1, -1), (1, 0, 1)),
        ((0, 0), (0, 0, 0)),
        ((0.5, 0.25), (0.5, 0.25, 0)),
    ):
        taken = original(np.array(given, np.float32))
        assert box.contains(taken)
        np.testing.assert_array_equal(taken, np.float32(wanted))


def test_wrong_numbers_are_named_and_the_extra_is_known():
    with pytest.raises(ValueError, match=r"skip=0, frames=1\): at least 1"):
        CarRacingSensors(skip=0)
    assert extra_of("CarRacingSensors-v0") == "box2d"
    assert gymnasium.spec("CarRacingSensors-v0").max_episode_steps == 250
    assert not rl.envs.is_compiled("CarRacingSensors-v0")
