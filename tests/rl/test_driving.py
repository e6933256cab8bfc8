"""The driving environment: geometry and motion beside plain NumPy, what sensors do not tell, and who can drive."""

import importlib

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rl

driving = importlib.import_module("rl.envs.driving")  # `rl.envs.driving` is the function
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def env():
    return rl.envs.make("Driving-v0")


@pytest.fixture(scope="module")
def cars(env):
    """64 cars at the start of their episodes."""
    states, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(KEY, 64))
    return states.state


@pytest.fixture(scope="module")
def step():
    plain = driving.untimed()
    return jax.jit(jax.vmap(plain.step, (0, 0, None)))


def curve(track, count=20_000):
    """The center line by its formula, as points [count, 2], float64."""
    angle = np.arange(count) * 2 * np.pi / count
    radius = np.ones(count)
    for k in range(2, 6):
        radius += track[0, k - 2] * np.cos(k * angle) + track[1, k - 2] * np.sin(k * angle)
    return 40 * radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def nearest(points, place):
    """Distance of a place from a curve of points, positive outside, and the number of the nearest point."""
    distances = np.linalg.norm(points - place, axis=1)
    at = distances.argmin()
    return distances[at] * (1 if np.linalg.norm(place) > np.linalg.norm(points[at]) else -1), at


def test_the_distance_from_the_center_line_is_that_to_the_nearest_of_many_points(cars):
    random = np.random.default_rng(0)
    for track in np.asarray(cars.track[:8], float):
        points = curve(track)
        tangent = np.roll(points, -1, 0) - np.roll(points, 1, 0)
        normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1) / np.linalg.norm(tangent, axis=1)[:, None]
        at, aside = random.integers(0, len(points), 50), random.uniform(-5, 5, 50)
        places = points[at] + aside[:, None] * normal[at]
        found = driving.offset(jnp.asarray(track, jnp.float32), *jnp.asarray(places.T, jnp.float32))
        wanted = np.array([nearest(points, place)[0] for place in places])
        np.testing.assert_allclose(wanted, aside, atol=0.02)
        np.testing.assert_allclose(found, wanted, atol=0.45)  # of the first order: exact on the line itself
        on_it = driving.offset(jnp.asarray(track, jnp.float32), *jnp.asarray(points[at].T, jnp.float32))
        np.testing.assert_allclose(on_it, 0, atol=1e-4)


def test_cars_begin_on_the_center_line_and_along_it(cars):
    for i in range(8):
        points = curve(np.asarray(cars.track[i], float))
        aside, at = nearest(points, np.asarray(cars.position[i], float))
        assert abs(aside) < 1.01
        along = (np.roll(points, -1, 0) - points)[at] * float(cars.direction[i])
        turn = (float(cars.heading[i]) - np.arctan2(along[1], along[0]) + np.pi) % (2 * np.pi) - np.pi
        assert abs(turn) < 0.13
    assert set(np.asarray(cars.direction)) == {-1, 1}


def test_the_slope_of_the_center_line_is_that_of_its_formula(cars):
    angle, track = np.linspace(0, 6, 50), np.asarray(cars.track[0], float)
    wanted = sum(k * (track[1, k - 2] * np.cos(k * angle) - track[0, k - 2] * np.sin(k * angle)) for k in range(2, 6))
    _, slope = driving.center_line(cars.track[0], *np.float32([np.cos(angle), np.sin(angle)]))
    np.testing.assert_allclose(slope, 40 * wanted, atol=1e-3)


def test_bends_have_a_radius_of_at_least_8_meters_and_the_road_does_not_touch_itself():
    states, _ = jax.jit(jax.vmap(driving.untimed().reset))(jax.random.split(KEY, 100))
    for track in np.asarray(states.track, float):
        points = curve(track, 1000)
        first = (np.roll(points, -1, 0) - np.roll(points, 1, 0)) / 2
        second = np.roll(points, -1, 0) - 2 * points + np.roll(points, 1, 0)
        bend = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / np.linalg.norm(first, axis=1) ** 3
        assert np.abs(bend).max() < 1 / 8
        assert np.linalg.norm(points, axis=1).min() > 3 * driving.HALF_WIDTH
    assert np.abs(states.track).max() > 0.1


def test_the_camera_shows_the_road_where_it_is(cars):
    for i in range(4):
        points = curve(np.asarray(cars.track[i], float))
        x, y = np.asarray(cars.position[i], float)
        heading = float(cars.heading[i])
        found = np.asarray(driving.camera(cars.track[i], cars.position[i], cars.heading[i]))[..., 0]
        for row in range(0, 36, 5):
            for column in range(0, 36, 5):
                ahead, left = 27.5 - row, 17.5 - column
                place = np.array([
                    x + ahead * np.cos(heading) - left * np.sin(heading),
                    y + ahead * np.sin(heading) + left * np.cos(heading),
                ])  # fmt: skip
                away = abs(nearest(points, place)[0])
                if abs(away - 4) > 0.9:  # a half for the edge, and what is not of the first order
                    assert found[row, column] == (255 if away < 4 else 0), (i, row, column, away)
        assert found[27:29, 17:19].min() == 255  # under the car


def test_motion_is_that_of_a_plain_loop(step, cars):
    random = np.random.default_rng(0)
    cars = cars._replace(speed=cars.speed + 6)
    actions = np.clip(random.normal((0, 0.7), 1, (40, 64, 2)), -1, 1).astype(np.float32)
    state, found = cars, []
    for action in actions:
        state, outcome = step(state, action, KEY)
        found.append((state, outcome))
    slid = 0
    for i in range(0, 64, 16):
        (x, y), points = np.asarray(cars.position[i], float), curve(np.asarray(cars.track[i], float))
        heading, speed, steering = float(cars.heading[i]), float(cars.speed[i]), 0.0
        lengths = np.linalg.norm(np.roll(points, -1, 0) - points, axis=1)
        angles = np.arctan2(points[:, 1], points[:, 0]) % (2 * np.pi)

        def along(x, y, lengths=lengths, angles=angles):  # arc length from θ = 0 to the direction of a place
            return np.concatenate([[0], np.cumsum(lengths)])[np.searchsorted(angles, np.arctan2(y, x) % (2 * np.pi))]

        for t in range(40):
            wheel, pedal = actions[t, i]
            steering += np.clip(0.5 * wheel - steering, -0.15, 0.15)
            speed = np.clip(speed + 0.1 * ((4 if pedal > 0 else 8) * pedal - 0.02 * speed), 0, 20)
            yaw_rate = speed * np.tan(steering) / 2.5
            if abs(yaw_rate * max(speed, 1)) > 6:
                yaw_rate, slid = np.sign(yaw_rate) * 6 / max(speed, 1), slid + 1
            before = along(x, y)
            x += 0.1 * speed * np.cos(heading + 0.05 * yaw_rate)
            y += 0.1 * speed * np.sin(heading + 0.05 * yaw_rate)
            heading += 0.1 * yaw_rate
            state, outcome = jax.tree.map(lambda leaf, i=i: leaf[i], found[t])
            np.testing.assert_allclose(state.position, [x, y], atol=1e-3)
            shown = outcome.observation["state"]
            np.testing.assert_allclose(shown, [speed / 20, yaw_rate, steering / 0.5], atol=1e-4)
            away = abs(nearest(points, (x, y))[0])
            if abs(away - 4) > 0.45:
                assert outcome.terminated == (away > 4)
            passed = along(x, y) - before
            passed -= round(passed / lengths.sum()) * lengths.sum()
            wanted = 0.1 * passed * float(cars.direction[i]) - 2 * bool(outcome.terminated)
            assert outcome.reward == pytest.approx(wanted, abs=0.004)
            assert not outcome.truncated
            if outcome.terminated:
                break
    assert slid > 10


def turned(cars, angle):
    """The same cars in a world that is turned about the origin."""
    order = np.arange(2, 6) * angle
    a, b = cars.track[:, 0], cars.track[:, 1]
    track = jnp.stack([a * np.cos(order) - b * np.sin(order), a * np.sin(order) + b * np.cos(order)], 1)
    rotation = np.float32([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return cars._replace(track=track, position=cars.position @ rotation.T, heading=cars.heading + np.float32(angle))


def test_turning_the_world_leaves_what_is_seen_as_it_is(step, cars):
    one, other = cars, turned(cars, 2.1)
    for _ in range(5):
        action = jnp.tile(jnp.float32([0.3, 0.8]), (64, 1))
        (one, seen), (other, also) = step(one, action, KEY), step(other, action, KEY)
        apart = np.abs(seen.observation["camera"].astype(int) - also.observation["camera"].astype(int))
        assert apart.max() <= 2  # of 255: rounding
        np.testing.assert_allclose(seen.observation["state"], also.observation["state"], atol=1e-5)
        np.testing.assert_allclose(seen.reward, also.reward, atol=1e-4)
    assert apart.shape == (64, 36, 36, 1)


def test_neither_sensor_tells_what_the_other_is_for(cars):
    observe = jax.jit(jax.vmap(driving._observe))
    faster = cars._replace(speed=cars.speed + 5, yaw_rate=cars.yaw_rate + 1, steering=cars.steering + 0.2)
    elsewhere = cars._replace(
        track=cars.track[::-1], position=cars.position[::-1], heading=cars.heading[::-1], direction=-cars.direction
    )
    seen = observe(cars)
    np.testing.assert_array_equal(seen["camera"], observe(faster)["camera"])
    np.testing.assert_array_equal(seen["state"], observe(elsewhere)["state"])
    assert (seen["state"] != observe(faster)["state"]).all(0).all()
    assert (seen["camera"] != observe(elsewhere)["camera"]).any((1, 2, 3)).all()


def test_a_plain_controller_gets_as_far_as_its_speed_and_slides_off_if_too_fast(env):
    """It follows the center line by the state, which no sensor shows."""

    def controller(car, speed):
        ahead = car.position + 6 * jnp.stack([jnp.cos(car.heading), jnp.sin(car.heading)])
        # To the left is outside for a car that drives clockwise.
        aside = car.direction * driving.offset(car.track, ahead[0], ahead[1])
        return jnp.stack([jnp.clip(0.3 * aside, -1, 1), jnp.clip(speed - car.speed, -1, 1)])

    def play(key, speed):
        def one(now, _):
            state, going, total, length = now
            state, outcome = env.step(state, controller(state.state, speed), key)
            total, length = total + going * outcome.reward, length + going
            return (state, going & ~(outcome.terminated | outcome.truncated), total, length), None

        now = (env.reset(key)[0], jnp.bool_(True), jnp.zeros(()), jnp.zeros(()))
        return jax.lax.scan(one, now, length=driving.MAX_STEPS)[0][2:]

    play_all = jax.jit(jax.vmap(play, (0, None)))
    returns, lengths = play_all(jax.random.split(KEY, 16), 8.0)
    assert (lengths == driving.MAX_STEPS).all()
    np.testing.assert_allclose(returns, 0.1 * 8 * 0.1 * driving.MAX_STEPS, rtol=0.1)
    _, lengths = play_all(jax.random.split(KEY, 16), 20.0)
    assert (lengths < driving.MAX_STEPS).all()


def test_gymnasium_and_compiled_agree(env):
    world = gymnasium.make("Driving-v0")
    assert world.observation_space == env.observation_space
    assert world.action_space == env.action_space
    step = jax.jit(env.step)
    for seed in range(3):
        observation, _ = world.reset(seed=seed)
        assert world.observation_space.contains(observation)
        state, outcome = env.reset(world.unwrapped._key)
        for _ in range(8):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), observation, outcome.observation)
            action = np.float32([0.2, 0.5])
            observation, reward, terminated, truncated, _ = world.step(action)
            state, outcome = step(state, action, KEY)
            assert reward == pytest.approx(float(outcome.reward), abs=1e-5)
            assert (terminated, truncated) == (outcome.terminated, outcome.truncated)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "Driving-v0"])
def test_nothing_is_wrong_with_it(env, name):
    found = rl.check_env(name or env, steps=60)
    assert not found.problems
    assert not found.notes


def test_it_is_rendered_with_the_car_where_it_is():
    world = gymnasium.make("Driving-v0", render_mode="rgb_array")
    world.reset(seed=1)
    shown = world.render()
    assert shown.shape == (240, 360, 3)
    assert shown.dtype == np.uint8
    car = world.unwrapped._state
    column, row = (np.asarray(car.position) * [1, -1] + 62) / 124 * 240
    assert tuple(shown[int(row), int(column)]) == (220, 50, 50)
    assert not np.array_equal(shown[:, 246:354], 0)
    plain = gymnasium.make("Driving-v0").unwrapped
    plain.reset(seed=1)
    assert plain.render() is None
