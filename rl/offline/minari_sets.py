"""Data sets on disk, in the format of Minari (`pip install 'jdl[offline]'`)."""

import itertools
import warnings
from pathlib import Path

import gymnasium
import jax
import numpy as np

from rl.envs.libraries import gymnasium_id, imported
from rl.offline.dataset import Dataset, Episode, from_episodes


def local() -> list[str]:
    """The ids of the Minari data sets on this machine.

    Raises:
        LookupError: if Minari is not installed.
    """
    return sorted(imported("minari", "'jdl[offline]'").list_local_datasets())


def load(name: str | Path) -> Dataset:
    """Read a local Minari data set.

    Args:
        name: its id, such as "pendulum/medium-v0", looked up in Minari's folder (`MINARI_DATASETS_PATH`); or the path
            of its directory. Minari itself downloads (`minari download ID`).

    Raises:
        LookupError: if Minari is not installed, and for a data set that is not there; the message lists those that are.
        ValueError: for an episode that does not fit the spaces, and for numbers that are not finite.
    """
    minari = imported("minari", "'jdl[offline]'")
    try:
        found = minari.MinariDataset(Path(name) / "data") if Path(name).is_dir() else minari.load_dataset(str(name))
    except (FileNotFoundError, ValueError) as error:
        there = ", ".join(local()) or "none"
        raise LookupError(
            f"there is no local Minari data set {str(name)!r}; there are: {there}. Record one (rl.offline.save), or "
            f"download it: minari download {name}"
        ) from error
    episodes = [
        Episode(one.observations, one.actions, one.rewards, bool(np.asarray(one.terminations)[-1])) for one in found
    ]
    env = found.env_spec.id if found.env_spec else None
    return from_episodes(episodes, found.observation_space, found.action_space, env)


def save(dataset: Dataset, name: str, *, description: str = "", algorithm: str = "") -> Path:
    """Write a data set as a local Minari data set, without loss; pictures are not compressed.

    Args:
        dataset: the data set.
        name: its id: an optional folder, a name and a version, "pendulum/medium-v0".
        description: how it was recorded.
        algorithm: the name of the algorithm that acted.

    Returns:
        The directory in which it lies.

    Raises:
        LookupError: if Minari is not installed.
        ValueError: for a name that exists; nothing is overwritten.
    """
    minari = imported("minari", "'jdl[offline]'")
    if name in local():
        raise ValueError(
            f"the Minari data set {name!r} exists; give another version, or delete it: minari delete {name}"
        )
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=number,
            observations=one.observation,
            actions=one.action,
            rewards=one.reward,
            terminations=_last_of(len(one.reward), one.terminated),
            truncations=_last_of(len(one.reward), not one.terminated),
        )
        for number, one in enumerate(split(dataset))
    ]
    env = dataset.env and gymnasium_id(dataset.env)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an author and a link to the code, which it would like to have
        made = minari.create_dataset_from_buffers(
            name,
            buffers,
            env=gymnasium.spec(env) if env else None,
            observation_space=dataset.observation_space,
            action_space=dataset.action_space,
            algorithm_name=algorithm or None,
            description=description or None,
            data_format="hdf5",
            jpeg_encoding=False,
        )
    return Path(made.spec.data_path).parent


def split(dataset: Dataset) -> list[Episode]:
    """The episodes of a data set.

    Args:
        dataset: the data set.
    """
    bounds = [*dataset.starts, len(dataset.reward)]
    return [_episode(dataset, slice(*pair)) for pair in itertools.pairwise(bounds)]


def _episode(dataset: Dataset, steps: slice) -> Episode:
    observation = jax.tree.map(
        lambda before, after: np.concatenate([before[steps], after[steps][-1:]]),
        dataset.observation,
        dataset.next_observation,
    )
    return Episode(observation, dataset.action[steps], dataset.reward[steps], bool(dataset.terminated[steps][-1]))


def _last_of(steps: int, value: bool) -> np.ndarray:
    return (np.arange(steps) == steps - 1) & value
