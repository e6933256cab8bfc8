"""A car on a closed track with two sensors, neither of which is enough: a camera, and the car's instruments.

The camera looks down on the car and what is around it. It shows the road and not the speed. The instruments tell speed,
yaw rate and steering, and nothing about the road. A car that is too fast in a bend does not hold its line.

The center line is ρ(θ) = 40 m (1 + Σₖ aₖ cos kθ + bₖ sin kθ), k = 2 ... 5, around the origin, so it never crosses
itself, and the distance of a point from it has a closed form (to first order), which is cheap enough for each pixel.
"""

from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, UInt8

from rl.envs.as_gymnasium import AsGymnasium
from rl.envs.environment import Environment, Outcome, time_limit

MAX_STEPS = 300
RADIUS = 40.0  # m, mean of the center line's
LIMITS = (0.15, 0.10, 0.06, 0.04)  # of the size of each pair (aₖ, bₖ): bends of at least 8 m radius
HALF_WIDTH = 4.0  # m, of the road
PIXELS = 36  # of 1 m each
AHEAD = 28.0  # m that the camera sees in front of the car; it sees 8 m behind it, and 18 m to each side
STEP = 0.1  # s
WHEELBASE = 2.5  # m
LOCK = 0.5  # rad, of the front wheels
STEERING_RATE = 1.5  # rad/s
GRIP = 6.0  # m/s², the largest acceleration to the side
POWER, BRAKES, DRAG = 4.0, 8.0, 0.02  # m/s², m/s², 1/s
TOP_SPEED = 20.0  # m/s
PER_METER = 0.1  # reward
OFF_TRACK = 2.0  # cost


class Car(NamedTuple):
    """The state of the car and its track.

    Attributes:
        track: [2, 4], the coefficients aₖ and bₖ.
        direction: 1 for driving counterclockwise, -1 for clockwise.
        position: [2], m.
        heading: rad, from the x axis counterclockwise.
        speed: m/s.
        yaw_rate: rad/s.
        steering: rad, of the front wheels; positive is left.
    """

    track: Any
    direction: Any
    position: Any
    heading: Any
    speed: Any
    yaw_rate: Any
    steering: Any


def center_line(
    track: Float[Array, "2 harmonics"], cosine: Float[Array, "*points"], sine: Float[Array, "*points"]
) -> tuple[Float[Array, "*points"], Float[Array, "*points"]]:
    """Distance of the center line from the origin in some directions, ρ(θ), and its derivative ρ′(θ), in m.

    Args:
        track: the coefficients aₖ and bₖ.
        cosine: of θ.
        sine: of θ.
    """
    radius, slope = jnp.ones_like(cosine), jnp.zeros_like(cosine)
    c, s = cosine, sine
    for i in range(track.shape[1]):
        order = i + 2
        c, s = c * cosine - s * sine, s * cosine + c * sine  # of the next multiple of θ: no trigonometry per pixel
        radius = radius + track[0, i] * c + track[1, i] * s
        slope = slope + order * (track[1, i] * c - track[0, i] * s)
    return RADIUS * radius, RADIUS * slope


def offset(track: Float[Array, "2 harmonics"], x: Float[Array, "*points"], y: Float[Array, "*points"]) -> Array:
    """Distance of points from the center line to first order, in m; positive outside of the closed curve.

    Args:
        track: the coefficients.
        x, y: the points, m.

    Source: Taubin 1991, section 4: a function's value over the size of its gradient.
    """
    away = jnp.sqrt(x * x + y * y) + 1e-6
    radius, slope = center_line(track, x / away, y / away)
    return (away - radius) * jax.lax.rsqrt(1 + (slope / radius) ** 2)


def camera(
    track: Float[Array, "2 harmonics"], position: Float[Array, "2"], heading: Float[Array, ""]
) -> UInt8[Array, "36 36 1"]:
    """The picture around the car, its heading upwards: 255 for road, 0 for all else, and gray at the edge.

    Args:
        track: the coefficients.
        position: of the car, m.
        heading: of the car, rad.
    """
    forward = AHEAD - 0.5 - np.arange(PIXELS, dtype=np.float32)[:, None]
    left = PIXELS / 2 - 0.5 - np.arange(PIXELS, dtype=np.float32)[None, :]
    cosine, sine = jnp.cos(heading), jnp.sin(heading)
    x = position[0] + forward * cosine - left * sine
    y = position[1] + forward * sine + left * cosine
    covered = jnp.clip(HALF_WIDTH + 0.5 - jnp.abs(offset(track, x, y)), 0, 1)
    return jnp.round(255 * covered).astype(jnp.uint8)[..., None]


def driving(max_steps: int = MAX_STEPS) -> Environment:
    """Drive along a random closed track; the reward is 0.1 per meter of progress, and -2 for leaving the road.

    An action is the steering wheel's position, -1 (right) to 1 (left), and the pedals', -1 (brakes) to 1 (throttle).
    The observation is a dict of two sensors: "camera", uint8 [36, 36, 1], and "state", the speed as a share of 20 m/s,
    the yaw rate in rad/s, and the front wheels' angle as a share of the largest. An episode terminates off the road.

    Args:
        max_steps: steps of 0.1 s after which an episode is truncated.

    Source: the kinematic bicycle of Rajamani 2012, "Vehicle dynamics and control", section 2.2, whose acceleration to
    the side is limited.
    """
    return time_limit(untimed(), max_steps)


def untimed() -> Environment:
    """`driving` without its limit of time, which Gymnasium adds by itself."""
    high = np.array([1, GRIP, 1], np.float32)
    seen = spaces.Dict({
        "camera": spaces.Box(0, 255, (PIXELS, PIXELS, 1), np.uint8),
        "state": spaces.Box(high * np.array([0, -1, -1], np.float32), high, dtype=np.float32),
    })  # fmt: skip
    return Environment("Driving-v0", _reset, _step, seen, spaces.Box(-1, 1, (2,), np.float32))


def _reset(key: Array) -> tuple[Car, Outcome]:
    keys = jax.random.split(key, 7)
    size = jnp.sqrt(jax.random.uniform(keys[0], (len(LIMITS),))) * np.array(LIMITS, np.float32)
    phase = jax.random.uniform(keys[1], (len(LIMITS),), maxval=2 * np.pi)
    track = size * jnp.stack([jnp.cos(phase), jnp.sin(phase)])
    direction = jnp.where(jax.random.bernoulli(keys[2]), 1.0, -1.0)
    at = jax.random.uniform(keys[3], maxval=2 * np.pi)
    cosine, sine = jnp.cos(at), jnp.sin(at)
    radius, slope = center_line(track, cosine, sine)
    along = direction * jnp.stack([slope * cosine - radius * sine, slope * sine + radius * cosine])
    aside = jax.random.uniform(keys[4], minval=-1, maxval=1)
    heading = jnp.arctan2(along[1], along[0]) + jax.random.uniform(keys[5], minval=-0.1, maxval=0.1)
    speed = jax.random.uniform(keys[6], maxval=TOP_SPEED / 2)
    position = (radius + aside) * jnp.stack([cosine, sine])
    car = Car(track, direction, position, heading, speed, jnp.zeros(()), jnp.zeros(()))
    return car, Outcome(_observe(car), jnp.float32(0), np.False_, np.False_)


def _step(car: Car, action: Any, key: Array) -> tuple[Car, Outcome]:
    wheel, pedal = jnp.clip(action[0], -1, 1), jnp.clip(action[1], -1, 1)
    turn = jnp.clip(wheel * LOCK - car.steering, -STEERING_RATE * STEP, STEERING_RATE * STEP)
    steering = car.steering + turn
    acceleration = jnp.where(pedal > 0, POWER, BRAKES) * pedal - DRAG * car.speed
    speed = jnp.clip(car.speed + STEP * acceleration, 0, TOP_SPEED)
    wanted = speed * jnp.tan(steering) / WHEELBASE
    # Beyond the grip the front wheels slide: the car turns only as fast as its tires can push it to the side.
    most = GRIP / jnp.maximum(speed, 1.0)
    yaw_rate = jnp.clip(wanted, -most, most)
    middle = car.heading + 0.5 * STEP * yaw_rate
    position = car.position + STEP * speed * jnp.stack([jnp.cos(middle), jnp.sin(middle)])
    heading = car.heading + STEP * yaw_rate
    moved = Car(car.track, car.direction, position, heading, speed, yaw_rate, steering)
    off = jnp.abs(offset(moved.track, position[0], position[1])) > HALF_WIDTH
    reward = PER_METER * _progress(car, moved) - OFF_TRACK * off
    return moved, Outcome(_observe(moved), reward.astype(jnp.float32), off, np.False_)


def _progress(before: Car, after: Car) -> Array:
    """The length of center line that was passed, in m: the angle about the origin times √(ρ² + ρ′²)."""
    (x, y), (next_x, next_y) = before.position, after.position
    passed = jnp.arctan2(x * next_y - y * next_x, x * next_x + y * next_y)
    away = jnp.sqrt(next_x**2 + next_y**2) + 1e-6
    radius, slope = center_line(after.track, next_x / away, next_y / away)
    return after.direction * passed * jnp.sqrt(radius**2 + slope**2)


def _observe(car: Car) -> dict[str, Array]:
    state = jnp.stack([car.speed / TOP_SPEED, car.yaw_rate, car.steering / LOCK])
    return {"camera": camera(car.track, car.position, car.heading), "state": state.astype(jnp.float32)}


class Driving(AsGymnasium):
    """`driving` in Gymnasium; it renders the track from above, and beside it what the two sensors say.

    Args:
        render_mode: "rgb_array" or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(untimed, render_mode)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The picture, uint8 [240, 360, 3]."""
        return None if self.render_mode is None else picture(jax.tree.map(np.asarray, self._state))


def picture(car: Car) -> np.ndarray:
    """The track from above, and beside it the camera and bars for speed (blue), yaw rate and steering (orange, red).

    Args:
        car: the state.

    Returns:
        uint8, [240, 360, 3].
    """
    grass, road, dark, light = np.array([[88, 140, 80], [70, 70, 74], [30, 30, 34], [225, 225, 225]], np.uint8)
    half = 62.0  # m
    axis = (np.arange(240) + 0.5) / 240 * 2 * half - half
    x, y = np.meshgrid(axis, -axis)
    aside = np.abs(np.asarray(offset(car.track, jnp.float32(x), jnp.float32(y))))[..., None]
    shown = np.where(aside < HALF_WIDTH, road, grass)
    shown = np.where(np.abs(aside - HALF_WIDTH) < 0.3, light, shown)
    cosine, sine = np.cos(car.heading), np.sin(car.heading)
    forward = (x - car.position[0]) * cosine + (y - car.position[1]) * sine
    left = (y - car.position[1]) * cosine - (x - car.position[0]) * sine
    body = (np.abs(forward) < 2.6) & (np.abs(left) < 1.4)
    shown[body] = (220, 50, 50)
    shown[body & (forward > 1.2)] = (250, 230, 120)
    panel = np.broadcast_to(dark, (240, 120, 3)).copy()
    seen = np.asarray(camera(car.track, car.position, car.heading))[..., 0]
    panel[6:114, 6:114] = np.kron(seen, np.ones((3, 3), np.uint8))[..., None]
    row, column = 6 + 3 * int(AHEAD), 6 + 3 * PIXELS // 2
    panel[row - 6 : row + 6, column - 3 : column + 3] = (220, 50, 50)
    bars = (car.speed / TOP_SPEED, car.yaw_rate / 2, car.steering / LOCK)
    colors = ((90, 160, 250), (250, 160, 60), (220, 50, 50))
    for i, (share, color) in enumerate(zip(bars, colors, strict=True)):
        top, middle = 140 + 30 * i, 8 if i == 0 else 60
        end = int(middle - np.clip(share, -1, 1) * 52) if i else int(8 + np.clip(share, 0, 1) * 104)
        panel[top : top + 14, 8:112] = 60
        panel[top : top + 14, min(middle, end) : max(middle, end) + 1] = color
    return np.concatenate([shown, panel], 1)


def register() -> None:
    """Register the Gymnasium environment of this file."""
    gymnasium.register("Driving-v0", f"{__name__}:Driving", max_episode_steps=MAX_STEPS)
