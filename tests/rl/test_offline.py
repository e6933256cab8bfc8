"""Learning from recorded steps: data sets beside plain loops, updates beside their equations, known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

import jdl
import rl
from rl import offline
from rl.offline import Episode

BOX, CHOICE = spaces.Box(-2.0, 2.0, (1,)), spaces.Discrete(3)
LINE = spaces.Box(-np.inf, np.inf, (1,))


def made(lengths, terminated, action_space=CHOICE, seed=0):
    draw = np.random.default_rng(seed)
    action_space.seed(seed)
    return [
        Episode(
            draw.normal(size=(n + 1, 1)).astype(np.float32),
            np.stack([action_space.sample() for _ in range(n)]),
            draw.normal(size=n).astype(np.float32),
            end,
        )
        for n, end in zip(lengths, terminated, strict=True)
    ]


@pytest.fixture
def minari_folder(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def test_steps_of_episodes():
    episodes = made([3, 1, 4], [True, False, False], spaces.Discrete(3, start=5))
    data = offline.from_episodes(episodes, LINE, spaces.Discrete(3, start=5))
    steps = data.transitions
    at = 0
    for episode in episodes:
        for t in range(len(episode.reward)):
            assert data.observation[at] == episode.observation[t]
            assert data.next_observation[at] == episode.observation[t + 1]
            assert data.action[at] == episode.action[t] == steps["action"][at] + 5
            last = t == len(episode.reward) - 1
            assert data.terminated[at] == (last and episode.terminated)
            assert data.ends[at] == last
            assert steps["time"][at] == t
            np.testing.assert_allclose(steps["return_to_go"][at], episode.reward[t:].sum(), rtol=1e-5)
            at += 1
    assert at == len(data.reward)
    np.testing.assert_allclose(data.returns, [episode.reward.sum() for episode in episodes], rtol=1e-5)
    np.testing.assert_array_equal(data.lengths, [3, 1, 4])
    np.testing.assert_array_equal(data.first_observations, [episode.observation[0] for episode in episodes])
    np.testing.assert_allclose(data.moments().mean, data.observation.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.moments().variance, data.observation.var(0), rtol=1e-5)
    both = offline.join(data, data)
    np.testing.assert_array_equal(both.lengths, [3, 1, 4, 3, 1, 4])


def test_windows_end_at_the_drawn_step():
    data = offline.from_episodes(made([3, 1, 4], [True, False, False]), LINE, CHOICE)
    seen = []

    def update(agent, batch, key):
        seen.append(batch)
        return agent, {}

    algorithm = rl.Algorithm(lambda key: (), lambda count: (), lambda *_: None, update, 1)
    learner = offline.learner(algorithm, CHOICE, 32, context=3)
    learner.step(learner.init(jax.random.key(0)), data.transitions)
    (batch,) = seen
    starts = dict(zip(data.observation[:, 0].tolist(), range(8), strict=True))
    for row in range(32):
        newest = starts[float(batch["observation"][row, -1, 0])]
        for back in range(3):
            exists = data.transitions["time"][newest] >= back
            assert batch["mask"][row, 2 - back] == exists
            if exists:
                assert batch["observation"][row, 2 - back] == data.observation[newest - back]
                assert batch["action"][row, 2 - back] == data.action[newest - back]


def test_minari_reads_what_is_written_and_the_other_way(minari_folder):
    import minari

    pictures = spaces.Dict(camera=spaces.Box(0, 255, (40, 40, 3), np.uint8), speed=spaces.Box(-1.0, 1.0, (2,)))
    draw = np.random.default_rng(0)
    episodes = [
        Episode(
            {"camera": draw.integers(0, 256, (n + 1, 40, 40, 3), np.uint8),
             "speed": draw.uniform(-1, 1, (n + 1, 2)).astype(np.float32)},
            draw.uniform(-2, 2, (n, 1)).astype(np.float32), draw.normal(size=n).astype(np.float32), n == 2,
        )
        for n in (2, 5)
    ]  # fmt: skip
    data = offline.from_episodes(episodes, pictures, BOX)
    folder = offline.save(data, "driving/mine-v0", description="by hand")
    assert "driving/mine-v0" in offline.local()
    for found in (offline.load("driving/mine-v0"), offline.load(folder)):
        for ours, theirs in zip(jax.tree.leaves(data[:6]), jax.tree.leaves(found[:6]), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    theirs = minari.load_dataset("driving/mine-v0")
    assert theirs.total_steps == 7
    np.testing.assert_array_equal(theirs[0].observations["camera"], episodes[0].observation["camera"])
    assert [bool(one.terminations[-1]) for one in theirs] == [True, False]
    assert [bool(one.truncations[-1]) for one in theirs] == [False, True]
    with pytest.raises(ValueError, match=r"'driving/mine-v0' exists; give another version"):
        offline.save(data, "driving/mine-v0")
    with pytest.raises(LookupError, match=r"no local Minari data set 'mine'; there are: driving/mine-v0"):
        offline.load("mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e._replace(reward=np.array([0, np.nan, 0], np.float32)),
            r"episode 1 has a number in reward .* step 1",
        ),
        (lambda e: e._replace(observation=e.observation * np.inf), r"episode 1 has a number in observation"),
        (lambda e: e._replace(observation=e.observation[1:]), r"episode 1 has 3 rewards, .*one observation more"),
        (lambda e: e._replace(reward=e.reward[:0]), r"episode 1 has no steps"),
    ],
)
def test_bad_episodes_are_named(change, message):
    first, second = made([3, 3], [True, True])
    with pytest.raises(ValueError, match=message):
        offline.from_episodes([first, change(second)], LINE, CHOICE)


def test_spaces_that_do_not_fit():
    data = offline.from_episodes(made([3], [True]), LINE, CHOICE)
    with pytest.raises(ValueError, match="a data set of no episodes"):
        offline.from_episodes([], LINE, CHOICE)
    with pytest.raises(ValueError, match=r"recorded with action_space Discrete.3., CartPole-v1 has Discrete.2."):
        offline.check_spaces(data, "CartPole-v1", LINE, spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"is not Box; use rl.offline.discrete_cql"):
        offline.cql(LINE, CHOICE)
    with pytest.raises(ValueError, match=r"is not Discrete; use rl.offline.cql"):
        offline.discrete_cql(LINE, BOX)
    with pytest.raises(ValueError, match=r"infinite ones; use rl.offline.iql"):
        offline.cql(LINE, LINE)
    env = rl.envs.make("CartPole-v1")
    one = rl.on_device(offline.bc(env.observation_space, env.action_space), env, 2)
    state = one.init(jax.random.key(0))
    with pytest.raises(TypeError, match=r"bc learns from recorded transitions alone"):
        one.step(state, None)


def test_a_greedy_recording_is_what_evaluation_plays():
    env = rl.envs.make("CartPole-v1")
    algorithm = rl.ppo(env.observation_space, env.action_space)
    agent = algorithm.init(jax.random.key(1))
    data = offline.record(algorithm, agent, "CartPole-v1", episodes=5, greedy=True, seed=3)
    scores = rl.evaluate(algorithm, agent, "CartPole-v1", episodes=5, seed=3)
    np.testing.assert_array_equal(np.sort(data.returns), np.sort(scores.returns))
    assert data.terminated.sum() == 5


@pytest.mark.medium
def test_a_replay_as_episodes():
    env = rl.envs.make("CartPole-v1")
    algorithm = rl.dqn(env.observation_space, env.action_space, num_envs=2, capacity=400, learning_starts=10_000)
    learner = jdl.jit(jdl.scan(rl.on_device(algorithm, env, 2), 40))
    state, _ = learner.step(learner.init(jax.random.key(0)), None)
    data = offline.replay_of(state.agent, "CartPole-v1")
    inner = np.flatnonzero(~data.ends)
    np.testing.assert_array_equal(data.next_observation[inner], data.observation[inner + 1])
    import gymnasium

    world = gymnasium.make("CartPole-v1").unwrapped
    world.reset()
    for step in inner[::7]:  # the physics lead from each observation to the next
        world.state = np.asarray(data.observation[step], np.float64)
        reached, *_ = world.step(int(data.action[step]))
        np.testing.assert_allclose(reached, data.next_observation[step], atol=1e-4)
    assert 300 < len(data.reward) <= 2 * 160
    assert data.terminated.sum() in (len(data.lengths) - 2, len(data.lengths) - 1, len(data.lengths))
    with pytest.raises(ValueError, match="the agent has no replay"):
        offline.replay_of(rl.ppo(env.observation_space, env.action_space).init(jax.random.key(0)), "CartPole-v1")


# One step from one of two states. Box: the reward is -(a - 1)² in state 1 and -(a + 1)² in state -1, and what was
# recorded is spread around -0.5 and 0.5, the wrong way. Choices: the best is 2 in state 1 and 0 in state -1.
def bandit(action_space, count=600):
    draw = np.random.default_rng(0)
    state = draw.choice([-1.0, 1.0], count).astype(np.float32)
    if action_space is BOX:
        action = draw.normal(-0.5 * state, 0.7).clip(-2, 2).astype(np.float32)[:, None]
        reward = -((action[:, 0] - state) ** 2)
    else:
        action = draw.choice(3, count, p=[0.3, 0.4, 0.3])
        reward = (action == np.where(state > 0, 2, 0)).astype(np.float32)
    seen = np.stack([state, state], 1)[..., None]
    episodes = [Episode(seen[i], action[i : i + 1], reward[i : i + 1], True) for i in range(count)]
    return offline.from_episodes(episodes, LINE, action_space)


MAKE = {
    "bc": lambda space, **options: offline.bc(LINE, space, torso(), **rates(), **options),
    "td3_bc": lambda space, **options: offline.td3_bc(LINE, space, torso(), **rates(), **{"alpha": 20.0, **options}),
    "iql": lambda space, **options: offline.iql(
        LINE, space, torso(), **rates(), **{"expectile": 0.9, "beta": 5.0, **options}
    ),
    "cql": lambda space, **options: offline.cql(
        LINE, space, torso(), **rates(), **{"alpha": 0.01, "actions": 4, "actor_optimizer": optax.adam(0.01), **options}
    ),
    "discrete_cql": lambda space, **options: offline.discrete_cql(
        LINE, space, torso(), **rates(), **{"alpha": 0.1, **options}
    ),
}


def torso():
    return rl.networks.MLP(lambda x: x, (32,))


def rates():
    return {"optimizer": optax.adam(0.01)}


def learned(algorithm, data, updates=400, batch_size=128, key=0):
    learner = jdl.jit(jdl.scan(offline.learner(algorithm, data.action_space, batch_size), updates))
    return learner.step(learner.init(jax.random.key(key)), data.transitions)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "action_space", "expected", "tolerance"),
    [
        ("bc", BOX, (0.5, -0.5), 0.2),
        ("td3_bc", BOX, (-1.0, 1.0), 0.25),
        ("iql", BOX, (-0.75, 0.75), 0.25),  # the mean of N(0.5, 0.7²) weighed by exp(-5 (a - s)²)
        ("cql", BOX, (-1.0, 1.0), 0.25),
        ("bc", CHOICE, (1, 1), 0),
        ("iql", CHOICE, (0, 2), 0),
        ("discrete_cql", CHOICE, (0, 2), 0),
    ],
)
def test_what_is_best_in_each_state(name, action_space, expected, tolerance):
    data = bandit(action_space)
    algorithm = MAKE[name](action_space)
    state, _ = learned(algorithm, data)
    seen = rl.TimeStep(jnp.array([[-1.0], [1.0]]), jnp.ones(2, bool))
    action = algorithm.act(state.agent, (), seen, jax.random.key(0), True)[0]
    np.testing.assert_allclose(np.ravel(action), expected, atol=tolerance)


@pytest.mark.medium
def test_cql_keeps_away_from_what_was_never_recorded():
    """An action that nobody took has no known value; without the conservative part its guess may be the highest."""
    draw = np.random.default_rng(0)
    action = draw.choice([0, 1], 500)
    one = np.ones((2, 1), np.float32)
    episodes = [Episode(one, np.array([a]), np.array([a - 5.0]), True) for a in action]
    data = offline.from_episodes(episodes, LINE, CHOICE)
    seen = rl.TimeStep(jnp.ones((1, 1)), jnp.ones(1, bool))
    chosen = {}
    for alpha in (0.0, 1.0):
        algorithm = MAKE["discrete_cql"](CHOICE, alpha=alpha)
        state, _ = learned(algorithm, data)
        chosen[alpha] = int(algorithm.act(state.agent, (), seen, jax.random.key(0), True)[0][0])
    assert chosen == {0.0: 2, 1.0: 1}  # all values are below zero: an untrained one of about zero looks best


@pytest.mark.medium
def test_updates_are_those_of_the_equations():
    """One update by gradient descent with rate 1: the change of the parameters is minus the gradient."""
    data = bandit(CHOICE, 16)
    steps = {name: jnp.asarray(leaf) for name, leaf in data.transitions.items()} | {"terminated": jnp.zeros(16, bool)}
    key = jax.random.key(3)

    def descent(make, **options):
        algorithm = make(LINE, CHOICE, torso(), optimizer=optax.sgd(1.0), discount=0.9, tau=0.5, **options)
        agent = algorithm.init(key)
        after, _ = algorithm.update(agent, steps, key)
        return agent, jax.tree.map(lambda a, b: a - b, agent.params, after.params), after

    def close(change, gradient):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), change, gradient)

    q = rl.networks.Values(torso(), 3)
    agent, change, after = descent(offline.discrete_cql, alpha=0.7)
    rows = jnp.arange(16)

    def conservative(params):
        values = q.apply({"params": params}, steps["observation"], None)[..., 0]
        following = q.apply({"params": agent.target}, steps["next_observation"], None)[..., 0]
        goal = steps["reward"] + 0.9 * following.max(-1)  # the target equals the parameters at first
        taken = values[rows, steps["action"]]
        push = jnp.log(jnp.exp(values).sum(-1)) - taken
        return (0.5 * (taken - goal) ** 2 + 0.7 * push).mean()

    close(change, jax.grad(conservative)(agent.params))
    close(after.target, jax.tree.map(lambda a, b: (a + b) / 2, agent.params, after.params))

    agent, change, after = descent(offline.iql, expectile=0.8, beta=2.0, limit=1.1)
    v = offline.networks.StateValue(torso())
    value = lambda params, seen: v.apply({"params": params}, seen)  # noqa: E731

    def taken_of(params):
        return q.apply({"params": params}, steps["observation"], None)[rows, steps["action"], 0]

    pair = jnp.stack([taken_of(jax.tree.map(lambda leaf, i=i: leaf[i], agent.params["critics"])) for i in (0, 1)])
    best = pair.min(0)

    def expectile_loss(params):
        error = best - value(params, steps["observation"])
        return jnp.where(error > 0, 0.8 * error**2, 0.2 * error**2).mean()

    close(change["value"], jax.grad(expectile_loss)(agent.params["value"]))
    weight = jnp.minimum(jnp.exp(2.0 * (best - value(agent.params["value"], steps["observation"]))), 1.1)
    policy = offline.networks.PolicyOutputs(torso(), 3, 0)

    def likelihood(params):
        log_probs = jax.nn.log_softmax(policy.apply({"params": params}, steps["observation"])[0])
        return -(weight * log_probs[rows, steps["action"]]).mean()

    close(change["actor"], jax.grad(likelihood)(agent.params["actor"]))
    goals = steps["reward"] + 0.9 * value(agent.params["value"], steps["next_observation"])

    def squared(params):
        return 0.5 * ((taken_of(params) - goals) ** 2).mean()

    for i in (0, 1):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], agent.params["critics"])
        close(jax.tree.map(lambda leaf, i=i: leaf[i], change["critics"]), jax.grad(squared)(one))


@pytest.mark.medium
def test_td3_bc_by_its_equations():
    data = bandit(BOX, 16)
    steps = {name: jnp.asarray(leaf) for name, leaf in data.transitions.items()} | {"terminated": jnp.zeros(16, bool)}
    options = {"optimizer": optax.sgd(1.0), "policy_delay": 1, "target_noise": 0.0, "alpha": 3.0, "discount": 0.9}
    algorithm = offline.td3_bc(LINE, BOX, torso(), **options)
    agent = algorithm.init(jax.random.key(0))
    after, _ = algorithm.update(agent, steps, jax.random.key(1))
    actor = rl.networks.Actor(torso(), 1, False)
    critic = rl.networks.Critic(torso(), (256,), 1)

    def act(params, seen):
        return jnp.tanh(actor.apply({"params": params}, seen)[0])

    def value(params, i, seen, units):
        return critic.apply({"params": jax.tree.map(lambda leaf: leaf[i], params)}, seen, units)[:, 0]

    units = steps["action"] / 2
    following = act(agent.params["actor"], steps["next_observation"])
    goal = steps["reward"] + 0.9 * jnp.minimum(
        *(value(agent.params["critics"], i, steps["next_observation"], following) for i in (0, 1))
    )

    def squared(params):
        return sum(0.5 * ((value(params, i, steps["observation"], units) - goal) ** 2).mean() for i in (0, 1))

    critics = jax.tree.map(lambda a, g: a - g, agent.params["critics"], jax.grad(squared)(agent.params["critics"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params["critics"], critics)

    def imitation(params):
        chosen = act(params, steps["observation"])
        values = value(critics, 0, steps["observation"], chosen)
        weight = 3.0 / jax.lax.stop_gradient(jnp.abs(values).mean())
        return -weight * values.mean() + ((chosen - units) ** 2).mean()

    expected = jax.tree.map(lambda a, g: a - g, agent.params["actor"], jax.grad(imitation)(agent.params["actor"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.params["actor"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["td3_bc", "cql"])
@pytest.mark.parametrize(
    "transform", [jdl.pmap, lambda learner: jdl.accumulate(learner, 4)], ids=["pmap", "accumulate"]
)
def test_transforms_change_nothing(name, transform, x64):
    wide = lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    one = offline.learner(MAKE[name](BOX), BOX, 64)
    one = one._replace(init=lambda key, init=one.init: jax.tree.map(wide, init(key)))
    data = bandit(BOX, 100).transitions
    results = []
    for learner in (one, transform(one)):
        learner = jdl.jit(jdl.scan(learner, 4))
        state, _ = learner.step(learner.init(jax.random.key(0)), data)
        results.append(jax.device_get(state.agent.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), *results)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    data = bandit(BOX, 100)
    learner = jdl.jit(offline.learner(MAKE["td3_bc"](BOX, moments=data.moments()), BOX, 32))
    whole = jdl.fit(learner, data.transitions, steps=20, run=tmp_path / "whole").state
    jdl.fit(learner, data.transitions, steps=10, run=tmp_path / "parts")
    parts = jdl.fit(learner, data.transitions, steps=20, run=tmp_path / "parts", resume=True).state
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole.agent), jax.device_get(parts.agent))
