"""Networks of several parts, and sensors that are missing: what acting shows, learning sees again, to the bit."""

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

import jdl
import rl
from rl.networks import MLP, Fusion, NatureCNN, torso
from rl.types import Algorithm, Experience, TimeStep

KEY = jax.random.key(0)
PICTURE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
SMALL = ((2, 8, 8), (3, 3, 1))
VECTORS = spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float32), "b": spaces.Discrete(4)})
SENSORS = spaces.Dict({"eye": spaces.Box(0, 255, (2, 2), np.uint8), "ear": spaces.Box(-1, 1, (3,), np.float32)})


def sample(space, count=5, seed=0):
    space.seed(seed)
    drawn = [space.sample() for _ in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *drawn)


def test_parts_without_pictures_are_one_vector_as_they_always_were():
    for space in (VECTORS, spaces.Tuple(tuple(VECTORS.spaces.values()))):
        network = torso(space)
        assert isinstance(network, MLP)
        params = network.init(KEY, sample(space))["params"]
        assert jax.tree.map(jnp.shape, params) == {
            "Dense_0": {"kernel": (7, 64), "bias": (64,)},
            "Dense_1": {"kernel": (64, 64), "bias": (64,)},
        }
    assert isinstance(torso(PICTURE), NatureCNN)


def test_a_picture_among_the_parts_has_convolutions_and_each_part_a_layer():
    space = spaces.Dict({"eye": PICTURE, "rest": VECTORS, "mood": spaces.Discrete(3)})
    seen = sample(space)
    network = torso(space, (6, 5), nn.relu, convolutions=SMALL)
    params = network.init(KEY, seen)["params"]
    found = network.apply({"params": params}, seen)

    def layer(name, x):
        return np.maximum(x @ np.asarray(params[name]["kernel"]) + params[name]["bias"], 0)

    x = np.asarray(seen["eye"], np.float32) / 255
    for name, (_, size, stride) in zip(("Conv_0", "Conv_1"), SMALL, strict=True):
        kernel, bias = (np.asarray(params["parts_eye"][name][part]) for part in ("kernel", "bias"))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
        x = np.maximum(np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias, 0)
    parts = {
        "eye": x.reshape(5, -1),
        "rest": np.concatenate([seen["rest"]["a"], np.eye(4)[seen["rest"]["b"]]], 1),
        "mood": np.eye(3)[seen["mood"]],
    }
    own = np.concatenate([layer(f"own_{name}", parts[name]) for name in space.spaces], 1)
    np.testing.assert_allclose(found, layer("mixing_0", own), atol=1e-5)


def test_tuples_and_parts_of_parts_have_convolutions_as_well():
    space = spaces.Tuple((spaces.Dict({"eye": PICTURE, "b": spaces.Discrete(4)}), spaces.Discrete(3)))
    network = torso(space, noisy=True, convolutions=SMALL)
    params = network.init(KEY, sample(space))["params"]
    assert params["parts_0"]["parts_eye"]["Conv_0"]["kernel"].shape == (8, 8, 1, 2)
    assert params["mixing_0"]["kernel_std"].shape == (128, 64)
    assert rl.spaces.has_image(space)
    assert not rl.spaces.has_image(VECTORS)


@pytest.mark.medium
def test_actor_and_critic_share_nothing_unless_told():
    space, actions = spaces.Dict({"eye": PICTURE, **VECTORS.spaces}), spaces.Discrete(2)
    network = Fusion({"eye": torso(PICTURE, convolutions=SMALL), "a": MLP(lambda x: x, (4,))}, (4, 4))
    for given in (None, network):
        params = rl.ppo(space, actions, given).init(KEY).params
        shapes = jax.tree.map(jnp.shape, params)
        assert shapes["actor"] == shapes["critic"]
        assert "parts_eye" in shapes["critic"]
        kernels = [params[one]["parts_eye"]["Conv_0"]["kernel"] for one in ("actor", "critic")]
        assert not np.allclose(*kernels)
    assert "critic" not in rl.ppo(space, actions, shared=True).init(KEY).params


def test_continuous_actions_have_convolutions_for_parts():
    space = spaces.Dict({"eye": PICTURE, "a": VECTORS["a"]})
    agent = jax.eval_shape(rl.sac(space, spaces.Box(-1, 1, (2,), np.float32), num_envs=2).init, KEY)
    assert any("parts_eye" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(agent.params))


def test_failures_are_as_frequent_as_said_and_one_sensor_stays():
    count, probability, key = 3, 0.6, jax.random.key_data(KEY)
    draw = jax.vmap(lambda lane, episode: rl.sensors.drawn(key, lane, episode, count, probability))
    works = np.asarray(draw(*jnp.indices((100, 200)).reshape(2, -1)))
    assert works.any(1).all()
    tolerance = 5 * 0.5 / np.sqrt(len(works))
    np.testing.assert_allclose(works.mean(0), 0.4 + 0.6**3 / 3, atol=tolerance)
    assert works.all(1).mean() == pytest.approx(0.4**3, abs=tolerance)
    lanes = works.reshape(100, 200, count)  # neither lanes nor episodes repeat each other
    assert abs((lanes[0] == lanes[1]).mean() - (lanes[:, 0] == lanes[:, 1]).mean()) < 0.15
    assert (lanes[0] == lanes[1]).mean() < 0.7


def witness(space):
    """An algorithm whose extras and metrics are what it was shown."""
    return Algorithm(
        init=lambda key: {"weight": jnp.zeros(2)},
        initial_carry=lambda num_envs: jnp.zeros(num_envs),
        act=lambda agent, carry, timestep, key, greedy: (timestep.first, carry + 1, timestep.observation),
        update=lambda agent, experience, key: (agent, experience),
        num_steps=7,
        recall=lambda agent, carry, timestep, action: (carry, timestep.observation),
    )


def play(algorithm, agent, first, observations, greedy=False):
    """What is seen in each step, and the carries before each step."""
    carry, seen, carries = algorithm.initial_carry(first.shape[1]), [], []
    for t in range(len(first)):
        carries.append(carry)
        timestep = TimeStep(jax.tree.map(lambda leaf, t=t: leaf[t], observations), first[t])
        _, carry, extras = algorithm.act(agent, carry, timestep, KEY, greedy)
        seen.append(extras)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *seen), carries


@pytest.fixture
def rollout():
    random = np.random.default_rng(0)
    first = random.random((16, 6)) < 0.4
    first[0] = True
    observations = jax.tree.map(lambda leaf: leaf.reshape(16, 6, *leaf.shape[1:]), sample(SENSORS, 96))
    return jnp.asarray(first), jax.tree.map(lambda leaf: jnp.where(leaf == 0, 1, leaf), observations)


def test_acting_recall_and_update_are_shown_the_same(rollout):
    first, observations = rollout
    algorithm = rl.sensors.failing(witness, SENSORS, 0.5)
    agent = algorithm.init(KEY)
    seen, carries = play(algorithm, agent, first, observations)
    there = seen["present"].astype(bool)
    assert there.any(-1).all()
    assert len(np.unique(there.reshape(-1, 2), axis=0)) == 3
    for t in range(1, 16):  # a sensor fails for an episode
        np.testing.assert_array_equal(there[t][~first[t]], there[t - 1][~first[t]])
    for i, name in enumerate(("ear", "eye")):  # in the order of the space, which Gymnasium sorts
        assert list(SENSORS.spaces)[i] == name
        keep = there[..., i].reshape(16, 6, *[1] * (observations[name].ndim - 2))
        np.testing.assert_array_equal(seen[name], np.where(keep, observations[name], 0))
        assert seen[name].dtype == SENSORS[name].dtype

    of = lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree)  # noqa: E731
    nothing, changed = jnp.zeros((7, 6), bool), 0
    for begin in (0, 5, 8):  # rollouts of 7 steps
        steps, end = slice(begin, begin + 7), begin + 7
        inner, recalled = algorithm.recall(
            agent, carries[begin], TimeStep(of(observations, steps), first[steps]), first[steps]
        )
        jax.tree.map(np.testing.assert_array_equal, recalled, of(seen, steps))
        np.testing.assert_array_equal(inner, begin)
        reached = of(observations, slice(begin + 1, end + 1))
        experience = Experience(
            timestep=TimeStep(of(observations, steps), first[steps]), action=nothing, extras=(), reward=nothing * 0.0,
            terminated=nothing, truncated=nothing, valid=~nothing, next_observation=reached,
            last=TimeStep(of(observations, end), first[end]), carry=carries[begin],
        )  # fmt: skip
        after, shown = algorithm.update(agent, experience, KEY)
        jax.tree.map(np.testing.assert_array_equal, shown.timestep.observation, of(seen, steps))
        jax.tree.map(np.testing.assert_array_equal, shown.last.observation, of(seen, end))
        changed += (there[end] != there[end - 1]).sum()
        np.testing.assert_array_equal(shown.next_observation["present"], seen["present"][steps])
        goes_on = ~np.asarray(first[begin + 1 : end + 1])
        after_it = of(seen, slice(begin + 1, end + 1))
        jax.tree.map(
            lambda a, b, at=goes_on: np.testing.assert_array_equal(a[at], b[at]), shown.next_observation, after_it
        )
        np.testing.assert_array_equal(after.key, agent.key)
    assert changed


def test_runs_have_failures_of_their_own_and_evaluation_has_none(rollout):
    first, observations = rollout
    algorithm = rl.sensors.failing(witness, SENSORS, 0.5)
    one, other = (play(algorithm, algorithm.init(jax.random.key(i)), first, observations)[0] for i in range(2))
    assert not np.array_equal(one["present"], other["present"])
    agent = algorithm.init(KEY)
    seen, _ = play(algorithm, agent, first, observations, greedy=True)
    assert seen.pop("present").all()
    jax.tree.map(np.testing.assert_array_equal, seen, observations)
    deaf = rl.sensors.failing(witness, SENSORS, 0.5, dropped=("ear",))
    seen, _ = play(deaf, agent, first, observations, greedy=True)
    assert not seen["ear"].any()
    np.testing.assert_array_equal(seen["eye"], observations["eye"])
    np.testing.assert_array_equal(seen["present"], np.broadcast_to([0, 1], (16, 6, 2)))


def test_some_sensors_alone(rollout):
    first, observations = rollout
    spaces_made = []
    algorithm = rl.sensors.only(lambda space: spaces_made.append(space) or witness(space), SENSORS, ("ear",))
    assert spaces_made == [spaces.Dict({"ear": SENSORS["ear"]})]
    agent = algorithm.init(KEY)
    seen, carries = play(algorithm, agent, first, observations)
    assert set(seen) == {"ear"}
    np.testing.assert_array_equal(seen["ear"], observations["ear"])
    _, recalled = algorithm.recall(agent, carries[0], TimeStep(observations, first), first)
    assert set(recalled) == {"ear"}


def tiny(config_space, actions, **options):
    network = torso(config_space, (8, 8), convolutions=SMALL)
    options = {"num_steps": 6, "epochs": 1, "minibatches": 1} | options
    return rl.ppo(config_space, actions, network, optimizer=optax.sgd(1e-3), shared=True, **options)


@pytest.mark.medium
@pytest.mark.parametrize("runner", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_the_probabilities_that_ppo_learns_from_are_those_it_acted_with(runner):
    env = rl.envs.time_limit(rl.envs.driving(), 4)  # so that failures change within a rollout
    algorithm = rl.sensors.failing(lambda space: tiny(space, env.action_space), env.observation_space, 0.5)
    if runner == "device":
        learner = jdl.jit(rl.on_device(algorithm, env, 4))
        source = None
    else:
        vector = gymnasium.vector.SyncVectorEnv([lambda: rl.envs.AsGymnasium(env)] * 2)
        learner, source = rl.on_host(algorithm, vector)
        learner = jdl.jit(learner)
    rows = jdl.fit(learner, source, steps=3).rows
    if source is not None:
        source.close()
    # The first update of a rollout is taken where it acted: the ratio of probabilities is 1.
    assert all(abs(row["train/approximate_kl"]) < 1e-6 for row in rows)
    assert all(row["train/value_loss"] > 0 for row in rows)


def test_what_cannot_be_is_told_before_anything_is_made():
    for make in (rl.sensors.failing, rl.sensors.only):
        with pytest.raises(ValueError, match="sensors are the parts of a Dict"):
            make(witness, spaces.Box(0, 1, (2,)), **({"chosen": ("a",)} if make is rl.sensors.only else {}))
    with pytest.raises(ValueError, match=r"failing\(probability=1.0\): from 0 to below 1"):
        rl.sensors.failing(witness, SENSORS, 1.0)
    with pytest.raises(ValueError, match=r"name some of the sensors \('ear', 'eye'\)"):
        rl.sensors.failing(witness, SENSORS, dropped=("nose",))
    with pytest.raises(ValueError, match="leave at least one"):
        rl.sensors.failing(witness, SENSORS, dropped=("ear", "eye"))
    with pytest.raises(ValueError, match="name at least one"):
        rl.sensors.only(witness, SENSORS, ())
    with pytest.raises(ValueError, match=r"chosen='ear'.*as in \('ear',\)"):
        rl.sensors.only(witness, SENSORS, "ear")
