"""CarRacing (Gymnasium's, Box2D) with two sensors, as `Driving-v0` has them: a camera, and the car's instruments.

What CarRacing shows has a strip below the picture with bars for speed, yaw rate, steering and wheels, and the score. It
is cut off: whoever sees it needs no instruments. `pip install 'jdl[box2d]'`. The host steps it.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

NAME = "CarRacingSensors-v0"
SKIP = 4  # frames of 1/50 s that an action lasts
MAX_FRAMES = 1000  # of an episode, as CarRacing-v3
STRIP = 12  # rows at the bottom
GRAY = np.array([0.299, 0.587, 0.114], np.float32)
SCALE = np.array([100.0, 5.0, 0.4], np.float32)  # m/s, rad/s, rad: the units of the instruments


class CarRacingSensors(gymnasium.Wrapper):
    """`CarRacing-v3` with a Dict of observations and an action of two numbers, "CarRacingSensors-v0".

    "camera" is uint8 [42, 48, frames], gray, half as large as the original; "state" is float32 [3]: speed / 100 m/s,
    yaw rate / 5 rad/s, angle of the front wheels / 0.4 rad. An action is the steering, from -1 (left) to 1 (right), and
    the pedals, from -1 (brakes) to 1 (gas). So both pedals have their whole range without clipping, and an action of
    zeros rolls: in the original's box [-1, 1] × [0, 1]² a policy whose mean is 0 would press both, or be clipped. A
    finished lap, and leaving the field, terminate an episode. The reward is the sum of the original's.

    Args:
        skip: frames that an action lasts; those between are not drawn, which takes most of the time.
        frames: pictures in the observation, of the last actions; with two or more the camera shows speed as well.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: for `skip` or `frames` below 1.
    """

    def __init__(self, skip: int = SKIP, frames: int = 1, render_mode: str | None = None) -> None:
        if skip < 1 or frames < 1:
            raise ValueError(f"CarRacingSensors(skip={skip}, frames={frames}): at least 1 of each")
        racing: Any = gymnasium.make("CarRacing-v3", render_mode=render_mode).unwrapped
        super().__init__(racing)
        self._racing, self._skip, self._frames = racing, skip, frames
        self._draws = racing._render
        self._drawn = True
        racing._render = self._draw  # each step draws what it returns, also where nobody looks
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (42, 48, frames), np.uint8),
                "state": spaces.Box(-np.inf, np.inf, (3,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin an episode on another track.

        Args:
            seed: of the track.
            options: CarRacing's.
        """
        picture, info = self.env.reset(seed=seed, options=options)
        self._past = [camera(picture)] * self._frames
        return self._seen(), info

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Act for some frames, fewer where the episode ends.

        Args:
            action: steering and pedals.
        """
        given, total, left = original(action), 0.0, self._skip
        while True:
            left -= 1
            self._drawn = left == 0
            picture, reward, terminated, truncated, info = self.env.step(given)
            total += float(reward)
            if terminated or truncated or left == 0:
                break
        if not self._drawn:
            self._drawn = True
            picture = self._draws("state_pixels")
        self._past = [*self._past[1:], camera(picture)]
        return self._seen(), total, terminated, truncated, info

    def _draw(self, mode: str) -> Any:
        return self._draws(mode) if self._drawn or mode != "state_pixels" else self._racing.state

    def _seen(self) -> dict[str, np.ndarray]:
        car = self._racing.car
        state = np.array([car.hull.linearVelocity.length, car.hull.angularVelocity, car.wheels[0].joint.angle])
        return {"camera": np.stack(self._past, -1), "state": np.float32(state) / SCALE}


def original(action: np.ndarray) -> np.ndarray:
    """CarRacing's steering, gas and brakes, float32 [3], of steering and pedals.

    Args:
        action: [2], from -1 to 1.
    """
    steering, pedals = action
    return np.array([steering, max(pedals, 0), max(-pedals, 0)], np.float32)


def camera(picture: np.ndarray) -> np.ndarray:
    """The picture without the strip of instruments, gray, each pixel the mean of four: uint8 [42, 48].

    Args:
        picture: uint8 [96, 96, 3], as CarRacing draws it.
    """
    gray = picture[:-STRIP] @ GRAY
    return np.round(gray.reshape(42, 2, 48, 2).mean((1, 3))).astype(np.uint8)


def register() -> None:
    """Register the Gymnasium environment of this file."""
    gymnasium.register(NAME, f"{__name__}:CarRacingSensors", max_episode_steps=MAX_FRAMES // SKIP)
