"""Driving among others on a highway (highway-env), with two sensors: what its vehicles do, and a map of where they are.

`pip install 'jdl[highway]'`. The host steps it, a few dozen steps a second.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rl.envs.libraries import gymnasium_id

NAME = "HighwaySensors-v0"
BEHIND, AHEAD, ASIDE = 20, 100, 18  # m that the map shows
CELL = 5, 4  # m along and across the road: as wide as a lane
MAP = ["presence", "on_road"]

SENSORS = {
    "type": "TupleObservation",
    "observation_configs": [
        # Absolute positions would be large and hide how far away the others are.
        {"type": "Kinematics", "vehicles_count": 5, "absolute": False},
        {
            "type": "OccupancyGrid",
            "features": MAP,
            "grid_size": [[-BEHIND, AHEAD], [-ASIDE, ASIDE]],
            "grid_step": list(CELL),
        },
    ],
}


class HighwaySensors(gymnasium.ObservationWrapper):
    """`highway-fast-v0` with a Tuple of observations, "HighwaySensors-v0".

    The first is float32 [5, 5], rows of the car itself and of the next four ahead: presence, x, y, vx, vy, of the
    others relative to the car. The second is a map of truth values, [24, 9, 2]: from 20 m behind to 100 m ahead, 18 m
    to each side, whether there is a vehicle, and whether there is road. An episode takes 30 s, a step each second, and
    terminates with a crash; the reward is at most 1 a step.

    Args:
        render_mode: "rgb_array" or None.

    Raises:
        LookupError: if highway-env is not installed.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        env: Any = gymnasium.make(
            gymnasium_id("highway-fast-v0"), render_mode=render_mode, config={"observation": SENSORS}
        )
        super().__init__(env)
        others, grid = env.observation_space
        shape = *grid.shape[1:], grid.shape[0]
        cells = spaces.Box(0, 1, shape, np.bool_)  # type: ignore[arg-type]
        self.observation_space = spaces.Tuple((others, cells))

    def observation(self, observation: Any) -> tuple[np.ndarray, np.ndarray]:
        """The two sensors.

        Args:
            observation: highway-env's.
        """
        others, grid = observation
        return others, np.moveaxis(grid > 0.5, 0, -1)


def register() -> None:
    """Register the Gymnasium environment of this file, whose limit of time is its own."""
    gymnasium.register(NAME, f"{__name__}:HighwaySensors")
