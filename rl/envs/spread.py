"""A small cooperative task whose best return is known: agents on a grid cover as many landmarks.

The interface is that of PettingZoo's parallel environments, but PettingZoo is not needed for it.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

SPREADS = (2, 3, 4)  # numbers of agents that have a name
_MOVES = np.array([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)])  # stay, and a cell along an axis
_CELL = 48  # pixels
_COLORS = np.array([(214, 69, 65), (41, 98, 168), (46, 139, 87), (216, 140, 40)], np.uint8)


class Spread:
    """Agents on a grid cover landmarks, one each; until all are covered, each step costs the team.

    An agent that reaches a free landmark stays there; of two that reach it together, the first in order does. All
    agents earn the same: minus the share of them that is not on a landmark yet. They may share cells otherwise. An
    agent observes its place, the offsets of the landmarks and of the other agents, and which of all are settled; its
    action mask lets a settled agent do nothing but stay.

    Args:
        count: agents, and landmarks.
        size: cells along an edge.
        max_steps: steps after which an episode is truncated.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: for fewer than 2 agents, or more than the grid has room for.

    Source: simple_spread of Lowe et al. 2017, "Multi-agent actor-critic for mixed cooperative-competitive
    environments", on a grid, so that its optimum is known.
    """

    metadata = {"name": "spread", "render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, count: int = 3, size: int = 5, max_steps: int = 50, render_mode: str | None = None) -> None:
        if not 2 <= count <= size * size // 2:
            raise ValueError(f"Spread(count={count}, size={size}): from 2 agents to half as many as there are cells")
        self.count, self.size, self.max_steps, self.render_mode = count, size, max_steps, render_mode
        self.possible_agents = [f"agent_{i}" for i in range(count)]
        self.agents: list[str] = []
        self._observation_space = spaces.Box(-1, 1, (6 * count,), np.float32)
        self._action_spaces = {agent: spaces.Discrete(len(_MOVES)) for agent in self.possible_agents}
        self._random, _ = seeding.np_random()
        turned = (np.arange(count)[:, None] + np.arange(1, count)) % count  # others, the next in order first
        landmarks = np.broadcast_to(np.arange(count), (count, count))
        self._order = np.concatenate([landmarks, count + turned], 1)

    def __str__(self) -> str:
        return f"spread of {self.count}"

    @property
    def unwrapped(self) -> "Spread":
        """This environment."""
        return self

    def observation_space(self, agent: str) -> spaces.Space:
        """The same for all agents.

        Args:
            agent: its name.
        """
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space:
        """To stay, or to move a cell along either axis.

        Args:
            agent: its name.
        """
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Put agents and landmarks on cells of their own.

        Args:
            seed: of this episode and those after it; None goes on from the last seed.
            options: not used.
        """
        if seed is not None:
            self._random, _ = seeding.np_random(seed)
        cells = self._random.choice(self.size**2, 2 * self.count, replace=False)
        places = np.stack([cells // self.size, cells % self.size], 1)
        self.places, self.landmarks = places[: self.count], places[self.count :]
        self.settled, self.covered = np.zeros(self.count, bool), np.zeros(self.count, bool)
        self.agents, self.time = list(self.possible_agents), 0
        return self._observe(), self._infos()

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Move the agents that are not on a landmark yet.

        Args:
            actions: for each agent, 0 to stay, 1 to 4 to move.
        """
        moves = _MOVES[[int(actions[agent]) for agent in self.agents]]
        self.places = np.clip(self.places + moves * ~self.settled[:, None], 0, self.size - 1)
        self.time += 1
        for agent in np.flatnonzero(~self.settled):
            here = np.flatnonzero((self.landmarks == self.places[agent]).all(1) & ~self.covered)
            if len(here):
                self.settled[agent] = self.covered[here[0]] = True
        reward, over = -float((~self.settled).mean()), bool(self.settled.all())
        cut = self.time >= self.max_steps and not over
        rewards, ended, truncated = (dict.fromkeys(self.agents, value) for value in (reward, over, cut))
        if over or cut:
            self.agents = []
        return self._observe(), rewards, ended, truncated, self._infos()

    def best_return(self) -> float:
        """The highest return that the team can still reach.

        The best pairs of agents and landmarks cost least in sum, and no agent stands in another's way: if it would
        cover a landmark on its way, it may as well stay there, and the other goes on to the one it was bound for.
        """
        from scipy.optimize import linear_sum_assignment  # half a second of import

        free, left = self.places[~self.settled], self.landmarks[~self.covered]
        steps = np.abs(free[:, None] - left[None]).sum(-1)
        # The step that settles an agent does not cost any more.
        return -float((steps[linear_sum_assignment(steps)] - 1).sum()) / self.count

    def render(self) -> np.ndarray:
        """The grid: landmarks are squares, agents are discs."""
        edge = self.size * _CELL
        picture = np.full((edge, edge, 3), 245, np.uint8)
        picture[::_CELL] = picture[:, ::_CELL] = 220
        x, y = np.meshgrid(*(np.arange(_CELL) - _CELL / 2,) * 2, indexing="ij")
        square, disc = np.maximum(abs(x), abs(y)) < 0.4 * _CELL, np.hypot(x, y) < 0.28 * _CELL
        for place, covered in zip(self.landmarks, self.covered, strict=True):
            self._cell(picture, place)[square] = (190, 215, 190) if covered else (200, 200, 205)
        for number, place in enumerate(self.places):
            self._cell(picture, place)[disc] = _COLORS[number % len(_COLORS)]
        return picture

    def close(self) -> None:
        """Nothing is open."""

    def _cell(self, picture: np.ndarray, place: np.ndarray) -> np.ndarray:
        row, column = place * _CELL
        return picture[row : row + _CELL, column : column + _CELL]

    def _infos(self) -> dict[str, dict]:
        masks = np.ones((self.count, len(_MOVES)), np.int8)
        masks[self.settled, 1:] = 0
        return {agent: {"action_mask": mask} for agent, mask in zip(self.possible_agents, masks, strict=True)}

    def _observe(self) -> dict[str, np.ndarray]:
        count, far = self.count, self.size - 1
        things = np.concatenate([self.landmarks, self.places])[self._order]  # [agent, landmarks and others, 2]
        here = self.places[:, None]
        parts = (
            2 * self.places / far - 1,
            ((things - here) / far).reshape(count, -1),
            np.concatenate([self.covered, self.settled])[self._order],
            self.settled[:, None],
        )
        return dict(zip(self.possible_agents, np.concatenate(parts, 1, dtype=np.float32), strict=True))
