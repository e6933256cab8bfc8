"""Environments of several agents as vector environments: each agent is a lane, and one policy acts for all of them.

They have the interface of PettingZoo's parallel environments. What the lanes of a world have in common, its state and
its end, is known to this file alone; runners and algorithms see environments of one agent.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from rl.envs.libraries import gymnasium_id, imported

ENTRY = f"{__name__}:SharedPolicy"  # of Gymnasium's registry


class SharedPolicy(gymnasium.vector.VectorEnv):
    """Copies of a parallel environment of PettingZoo, whose agents are the lanes of a vector environment.

    An agent that is out while others go on waits: until all are out, its lane repeats its last observation, ignores
    actions, and gives a reward of zero and `info["waiting"]`. Runners do not learn from these steps. The step after the
    last agent is out begins the next episode, for all agents together.

    Args:
        make: function that makes one copy and takes `render_mode`, or PettingZoo's name for it
            ("butterfly/knights_archers_zombies_v11").
        num_envs: lanes, a multiple of the number of agents.
        agent_index: add "agent", the number of the agent among `possible_agents`, to what it observes; the observation
            is then a Dict.
        render_mode: of the copies.
        **options: further keywords of `make`.

    Raises:
        ValueError: for agents whose spaces differ, and for `num_envs` that is no multiple of their number.
        LookupError: for a name that PettingZoo does not have, or if it is not installed.
    """

    def __init__(
        self,
        make: Callable[..., Any] | str,
        num_envs: int,
        *,
        agent_index: bool = False,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        one = partial(_pettingzoo, make) if isinstance(make, str) else make
        world = one(render_mode=render_mode, **options)
        self.agents = list(world.possible_agents)
        count = len(self.agents)
        if num_envs < 1 or num_envs % count:
            world.close()
            raise ValueError(
                f"num_envs={num_envs}: {world} has {count} agents, and each is an environment to the policy; give a "
                f"multiple of {count}"
            )
        self.single_action_space = _same(world, "action_space")
        space = _same(world, "observation_space")
        if agent_index:
            parts = dict(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {"observation": space}
            space = gymnasium.spaces.Dict({**parts, "agent": gymnasium.spaces.Discrete(count)})
        self.single_observation_space, self.agent_index = space, agent_index
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.worlds = [world, *(one(render_mode=render_mode, **options) for _ in range(num_envs // count - 1))]
        self.metadata = {**world.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every copy.

        Args:
            seed: of the first agent's lane; each lane counts one further, and a copy takes that of its first. None for
                one that nobody knows.
            options: of the copies' `reset`.
        """
        super().reset(seed=seed)
        first = int(self.np_random.integers(2**31)) if seed is None else seed
        seeds = range(first, first + self.num_envs, len(self.agents))
        # Copies are given a seed at each reset, since many draw one that nobody knows where they are given none.
        self._seeds = [np.random.default_rng(number) for number in seeds]
        self._seen: list[Any] = [None] * self.num_envs
        masks: dict[int, Any] = {}
        for place, number in enumerate(seeds):
            self._begin(place, number, masks, options)
        return self._batch(masks)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every copy, which is a reset where all agents were out.

        Args:
            actions: [env, ...].
        """
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        masks: dict[int, Any] = {}
        chosen = list(iterate(self.action_space, actions))
        for place, world in enumerate(self.worlds):
            acting = list(world.agents)
            if not acting:
                self._begin(place, int(self._seeds[place].integers(2**31)), masks)
                continue
            lanes = {agent: self._lane(place, agent) for agent in acting}
            seen, rewards, ended, cut, infos = world.step({agent: chosen[lane] for agent, lane in lanes.items()})
            for agent, lane in lanes.items():
                reward[lane], terminated[lane], truncated[lane] = rewards[agent], ended[agent], cut[agent]
            self._see(place, seen, infos, masks)
        return self._batch(masks, terminated | truncated, (reward, terminated, truncated))

    def render(self) -> tuple[Any, ...]:
        """A picture of each copy."""
        return tuple(world.render() for world in self.worlds)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the copies.

        Args:
            **kwargs: not used.
        """
        for world in self.worlds:
            world.close()

    def _lane(self, place: int, agent: Any) -> int:
        return place * len(self.agents) + self.agents.index(agent)

    def _begin(self, place: int, seed: int, masks: dict[int, Any], options: dict[str, Any] | None = None) -> None:
        seen, infos = self.worlds[place].reset(seed=seed, options=options)
        self._see(place, seen, infos, masks)
        for agent in set(self.agents) - set(seen):  # it may come later
            self._seen[self._lane(place, agent)] = next(iter(seen.values()))

    def _see(self, place: int, seen: dict[Any, Any], infos: dict[Any, Any], masks: dict[int, Any]) -> None:
        for agent, observation in seen.items():
            lane = self._lane(place, agent)
            self._seen[lane] = observation
            if "action_mask" in infos.get(agent, {}):
                masks[lane] = infos[agent]["action_mask"]

    def _batch(self, masks: dict[int, Any], ended: Any = False, outcome: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        """Observations of all lanes, the outcome of their actions, and their info."""
        out = [agent not in world.agents for world in self.worlds for agent in self.agents]
        info: dict[str, Any] = {"waiting": np.array(out) & ~np.asarray(ended)}
        if masks:
            known = next(iter(masks.values()))
            everything = np.ones_like(known)
            info["action_mask"] = np.array([masks.get(lane, everything) for lane in range(self.num_envs)])
        seen = self._seen
        if self.agent_index:
            seen = [self._numbered(observation, lane) for lane, observation in enumerate(seen)]
        space = self.single_observation_space
        batch = concatenate(space, seen, create_empty_array(space, self.num_envs))
        return batch, *outcome, info

    def _numbered(self, observation: Any, lane: int) -> dict[str, Any]:
        parts = observation if isinstance(observation, dict) else {"observation": observation}
        return {**parts, "agent": lane % len(self.agents)}


def agents_of(name: str) -> int:
    """How many agents an environment has, each of them a lane; 1 for one that is not made by `SharedPolicy`.

    Args:
        name: id of the Gymnasium environment, or a name of a library's.
    """
    try:
        spec = gymnasium.spec(gymnasium_id(name))
    except gymnasium.error.Error:
        return 1  # what is wrong is said where it is made
    if spec.vector_entry_point not in (ENTRY, SharedPolicy):
        return 1
    options = {key: value for key, value in spec.kwargs.items() if key != "agent_index"}
    make = options.pop("make")
    world = _pettingzoo(make, **options) if isinstance(make, str) else make(**options)
    world.close()
    return len(world.possible_agents)


def _pettingzoo(name: str, **options: Any) -> Any:
    registry = imported("pettingzoo.env_registry", "'jdl[multi_agent]'")  # the import fills it
    try:
        return registry.registration.make("parallel", name, **options)
    except imported("pettingzoo.env_registry.exceptions").PettingZooRegistryError as error:
        raise LookupError(f"pettingzoo cannot make {name!r} with all agents acting at once: {error}") from error


def _same(world: Any, what: str) -> gymnasium.Space:
    """The space of all agents; raises ValueError if two have different ones."""
    first, *others = world.possible_agents
    space = getattr(world, what)(first)
    for agent in others:
        other = getattr(world, what)(agent)
        if other != space:
            raise ValueError(
                f"the {what.replace('_', ' ')} of agent {first!r} of {world} is {space}, that of {agent!r} is {other}; "
                "agents that share a policy have the same spaces: pad them (supersuit's pad_observations_v0 and "
                "pad_action_space_v0), or wrap the environment to show them alike"
            )
    return space
