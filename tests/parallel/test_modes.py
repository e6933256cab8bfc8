"""Every mode of using devices learns what one device learns, with the share of memory that its name promises."""

import functools
import itertools
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from learners import Linear, vectors

import jdl
from jdl.core.learner import Traits
from jdl.parallel.plan import plan, show

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 8, 96).astype(np.int32)
TOKENS = RANDOM.integers(0, 64, (96, 12)).astype(np.int32)
NETWORKS = {
    "mlp": (jdl.nn.MLP((64, 64, 8)), RANDOM.normal(size=(96, 32)), LABELS),
    "uneven": (
        jdl.nn.MLP((60, 100, 8)),
        RANDOM.normal(size=(96, 36)),
        LABELS,
    ),  # none a multiple of 8
    "gpt": (jdl.nn.GPT(64, 12, 32, 2, 8), TOKENS, np.roll(TOKENS, -1, 1)),
    "resnet": (jdl.nn.ResNet(8, (1, 1), width=16, stem="cifar"), RANDOM.normal(size=(96, 8, 8, 3)), LABELS),
}
MESHES = {"pmap": "8", "data": "8", "fsdp": "8", "tensor": "1x8", "fsdp+tensor": "4x2"}
CASES = [*itertools.product(("mlp", "gpt", "resnet"), MESHES), ("uneven", "fsdp")]
LEAST = {"pmap": 0.9, "data": 0.9, "fsdp": 4, "tensor": 4, "fsdp+tensor": 4}  # of 8; what is small is everywhere


def case(name):
    """A learner whose every number has 64 bits, and its data."""
    model, inputs, targets = NETWORKS[name]
    data = {"input": inputs, "target": targets}

    def loss(outputs, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["target"])
        return losses.reshape(len(losses), -1).mean(1)

    learner = jdl.supervised(model, loss, optax.adam(1e-3), example=data)

    def exact(leaf):
        return leaf.astype(float) if leaf.dtype == jnp.float32 else leaf

    return learner._replace(init=lambda key: jax.tree.map(exact, learner.init(key))), data


@functools.cache
def alone(name):
    learner, data = case(name)
    return trained(learner, data)[2]


def trained(learner, data, transform=lambda learner: learner):
    """The state before and after 50 steps, and their losses."""
    learner = jdl.jit(transform(jdl.scan(jdl.feed(learner, 32), 50)), donate=False)
    first = learner.init(jax.random.key(0))
    state, metrics = learner.step(first, data)
    return first, state, metrics["loss"].compute()


def shares(state):
    """Of each array, the bytes on one device and all of them."""
    return [(array.addressable_shards[0].data.nbytes, array.nbytes) for array in jax.tree.leaves(state)]


def mark(name, mode):
    if name in ("mlp", "uneven"):
        return ()
    # Of convolutions and their statistics, the mode that divides all; the others are for diagnosis.
    apart = name == "resnet" and mode != "fsdp+tensor"
    return pytest.mark.diagnosis if apart else pytest.mark.slow


@pytest.mark.medium
@pytest.mark.parametrize(("name", "mode"), [pytest.param(*one, marks=mark(*one)) for one in CASES])
def test_losses_are_those_of_one_device(name, mode, x64):
    learner, data = case(name)
    first, state, losses = trained(jdl.distribute(learner, mode), data)
    np.testing.assert_allclose(losses, alone(name), rtol=1e-9)
    planned = [(array.bytes_per_device, array.bytes) for array in plan(learner, mode, MESHES[mode]).arrays]
    assert shares(first) == shares(state) == planned
    each, whole = (sum(sizes) for sizes in zip(*planned, strict=True))
    assert whole / each > LEAST[mode]


def mlp():
    return case("mlp")[0]


@pytest.mark.parametrize("mode", ["fsdp", "fsdp+tensor"])
def test_what_divides_falls_to_a_share_each(mode):
    rows = plan(mlp(), mode, MESHES[mode]).arrays
    large = [row for row in rows if row.path.endswith("kernel") and "Dense_2" not in row.path]  # that has 512 numbers
    assert len(large) == 2 * 3  # and the two moments of each
    assert all(row.bytes_per_device * 8 == row.bytes for row in large)


def test_where_no_axis_divides_several_do():
    rows = {row.path: row for row in plan(case("uneven")[0], "fsdp", "8").arrays}
    assert show(rows["params/Dense_0/kernel"]) == "36/data:2, 60/data:4"
    assert show(rows["params/Dense_1/kernel"]) == "60/data:2, 100/data:4"
    assert rows["params/Dense_1/kernel"].bytes_per_device * 8 == rows["params/Dense_1/kernel"].bytes


def test_a_rule_on_a_mesh_of_factors():
    rules = [("Dense_2/kernel$", PartitionSpec(None, "data"))]
    spread = jdl.jit(jdl.shard(case("uneven")[0], rules=rules, fsdp="data"))
    state = spread.init(jax.random.key(0))
    assert shares(state.params["Dense_2"]["kernel"]) == [(100 * 4, 100 * 8 * 4)]
    assert shares(state.params["Dense_1"]["kernel"]) == [(60 * 100 // 2, 60 * 100 * 4)]


def test_recurrent_layers_are_not_divided_by_tensor():
    class Reads(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8)(jdl.nn.Recurrent(32)(x)[0][:, -1])

    data = {"input": np.ones((8, 4, 32), np.float32), "target": LABELS[:8]}
    learner = jdl.supervised(Reads(), jdl.losses.cross_entropy, optax.sgd(0.1), example=data)
    with pytest.raises(ValueError, match=r"layer_0_forward/recurrent_kernel cannot be divided.* fsdp"):
        jdl.jit(jdl.distribute(learner, "tensor")).init(jax.random.key(0))
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    spread = jdl.jit(jdl.shard(learner, mesh, [("recurrent_kernel$", PartitionSpec())], tensor="model"))
    spread.step(spread.init(jax.random.key(0)), data)


def test_capsules_are_divided_along_the_lower_ones():
    data = {"input": np.ones((4, 20, 20, 1), np.float32), "target": LABELS[:4]}
    network = jdl.nn.CapsNet(4, channels=16, kinds=4, decoder=())
    example = jdl.supervised(network, lambda outputs, batch: jdl.losses.margin(outputs.lengths, batch), optax.sgd(0.1),
                             example=data)  # fmt: skip
    rows = {row.path: show(row) for row in plan(example, "tensor", "1x8").arrays}
    assert re.search(r"^\d+/model, 4, 8, 16$", rows["params/Capsules_0/kernel"])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("mode", "mesh"),
    [
        ("fsdp", "4"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("pmap", "4"), ("data", "2"), ("fsdp+tensor", "2x2")]
        ),
    ],
)
def test_groups_of_devices_train_runs_each(mode, mesh, x64):
    learner, data = case("mlp")
    together = lambda learner: jdl.seeds(learner, 4, spread=False, placement="vmap")  # noqa: E731
    expected = trained(learner, data, together)[2]
    groups = lambda learner: jdl.seeds(learner, 4, spread=2)  # noqa: E731
    _, state, losses = trained(jdl.distribute(learner, mode, mesh), data, groups)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    kernel = state.params["Dense_1"]["kernel"].addressable_shards[0].data
    assert kernel.shape[0] == 2  # of four runs
    assert kernel.size == 2 * 64 * 64 / (4 if "fsdp" in mode else 1)


def test_rules_come_before_what_fsdp_shares_out():
    mesh = jax.make_mesh((2, 4), ("data", "model"))  # whose axes are explicit
    rules = [("Dense_1/kernel$", PartitionSpec(None, "model"))]
    state = jdl.jit(jdl.shard(mlp(), mesh, rules, fsdp="data")).init(jax.random.key(0))
    assert state.params["Dense_1"]["kernel"].sharding.spec == PartitionSpec("data", "model")
    assert state.optimizer[0].mu["Dense_1"]["kernel"].sharding.spec == PartitionSpec("data", "model")


def test_a_rule_leaves_an_optimizers_other_arrays_alone():
    learner = jdl.supervised(
        jdl.nn.MLP((128, 8)), jdl.losses.cross_entropy, optax.adafactor(1e-2, min_dim_size_to_factor=8),
        example={"input": np.ones((8, 128), np.float32), "target": LABELS[:8]},
    )  # fmt: skip
    spread = jdl.jit(jdl.shard(learner, rules=[("Dense_0/kernel$", PartitionSpec(None, "data"))], fsdp="data"))
    state = spread.init(jax.random.key(0))
    assert state.params["Dense_0"]["kernel"].sharding.spec == PartitionSpec(None, "data")
    spread.step(state, {"input": np.ones((8, 128), np.float32), "target": LABELS[:8]})


def test_parameters_are_gathered_and_no_activations():
    learner, data = case("mlp")
    spread = jdl.shard(learner, fsdp="data")
    state = jax.jit(spread.init)(jax.random.key(0))
    program = jax.jit(spread.step).lower(state, {name: leaf[:32] for name, leaf in data.items()}).compile().as_text()
    gathered = re.findall(r"= f\d+\[(\d+),(\d+)\]\S* all-gather\(", program)
    assert {("32", "64"), ("64", "64")} == set(gathered)  # the kernels of the two larger layers


def test_auto_leaves_a_cpu_and_what_seeds_have_spread_alone():
    learner, data = case("mlp")
    together = jdl.jit(jdl.seeds(jdl.distribute(learner), 2))  # no warning: warnings are errors here
    state, _ = together.step(together.init(jax.random.key(0)), data)
    assert state.params["Dense_0"]["kernel"].shape == (2, 32, 64)
    one = jdl.jit(jdl.distribute(learner))
    assert len(one.init(jax.random.key(0)).params["Dense_0"]["kernel"].devices()) == 1


@pytest.mark.parametrize(("size", "devices"), [(32, 8), (12, 1)])
def test_auto_takes_accelerators_that_divide_the_batch(size, devices, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    learner, data = case("mlp")
    spread = jdl.distribute(learner)
    state = jax.jit(spread.init)(jax.random.key(0))
    program = jax.jit(spread.step).lower(state, {name: leaf[:size] for name, leaf in data.items()})
    assert ("all-reduce" in program.compile().as_text()) == (devices > 1)
    assert jnp.isfinite(jax.jit(spread.evaluate)(state, data)["loss"].compute())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zero",), r"devices='zero': choose among auto, single, pmap, data, fsdp, tensor, fsdp\+tensor, sequence"),
        (("single", 2), r"devices='single' has no mesh \(2\); one is for pmap, data"),
        (("fsdp", 16), r"mesh 16 needs 16 devices, and there are 8; on a CPU jdl.host_devices"),
        (("tensor", "8"), r"devices='tensor', mesh='8': give 2 positive number\(s\), of devices along data and model"),
        (("data", (0,)), r"give 1 positive number"),
        (("data", "8x"), r"mesh='8x': write the numbers of devices along its axes as 8 or 4x2"),
    ],
)
def test_modes_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        jdl.distribute(mlp(), *arguments)


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        (
            [("Dense_7", PartitionSpec("data"))],
            {},
            r"the rule 'Dense_7' matches nothing; there are .*params/Dense_0/kern",
        ),
        ([("Dense_0/kernel", PartitionSpec("rows"))], {}, r"names the axis 'rows'; the mesh has \{'data': 8\}"),
        (
            [("Dense_0/bias", PartitionSpec(None, "data"))],
            {},
            r"has 2 entries for params/Dense_0/bias, whose shape is \(64,",
        ),
        ([("key|step", PartitionSpec("data"))], {}, r"has 1 entries for key, whose shape is \(\)"),
        ([], {"fsdp": "rows"}, r"shard\(fsdp='rows'\): the mesh has the axes data"),
        ([], {"tensor": "model"}, r"shard\(tensor='model'\): the mesh has the axes data"),
    ],
)
def test_rules_that_do_not_fit(rules, options, message):
    with pytest.raises(ValueError, match=message):
        jdl.jit(jdl.shard(mlp(), None, rules, **options)).init(jax.random.key(0))


def test_a_rule_that_does_not_divide_its_axis():
    odd = jdl.supervised(
        jdl.nn.MLP((12, 3)),
        jdl.losses.cross_entropy,
        optax.sgd(0.1),
        example={"input": np.ones((1, 4)), "target": LABELS[:1]},
    )
    message = r"does not divide params/Dense_0/kernel, whose shape is \(4, 12\): its axis 1 must be a multiple of 8"
    with pytest.raises(ValueError, match=message):
        jdl.jit(jdl.shard(odd, rules=[("Dense_0/kernel", PartitionSpec(None, "data"))])).init(jax.random.key(0))
    plan(odd, "tensor", "1x8")  # the rules of jdl.nn leave out what they do not divide


def test_a_batch_that_the_mesh_does_not_divide():
    learner, data = case("mlp")
    learner = jdl.distribute(learner, "fsdp")
    with pytest.raises(
        ValueError, match=r"shape \(12,.*does not divide over 8 devices; its leading axis must be a multiple"
    ):
        jdl.jit(learner).step(learner.init(jax.random.key(0)), {name: leaf[:12] for name, leaf in data.items()})


def test_shard_goes_inside_of_seeds():
    with pytest.raises(ValueError, match=r"shard goes inside: seeds\(shard\(learner\)"):
        jdl.shard(jdl.seeds(mlp(), 2))
    learner, data = case("mlp")
    several = jdl.jit(jdl.seeds(jdl.distribute(learner, "fsdp"), 2, spread=False))
    state = several.init(jax.random.key(0))
    kernel = several.step(state, data)[0].params["Dense_1"]["kernel"]
    assert kernel.addressable_shards[0].data.nbytes * 8 == kernel.nbytes


def test_rules_are_judged_on_one_device_too():
    with pytest.raises(ValueError, match="matches nothing"):
        jdl.distribute(mlp(), "data", 1, [("Dense_7", PartitionSpec("data"))]).init(jax.random.key(0))


def test_a_step_that_needs_no_batch():
    learner = jdl.Learner(
        init=lambda key: {"params": jnp.ones((64, 64))},
        step=lambda state, batch: (
            jdl.gradients(lambda params, batch, key: (params.sum(), 1.0), state["params"], None, jax.random.key(0))[0],
            {},
        ),
        evaluate=lambda state, batch: {},
        traits=Traits(fed=True),
    )
    spread = jdl.shard(
        learner._replace(step=lambda state, batch: ({"params": learner.step(state, batch)[0]}, {})), fsdp="data"
    )
    state, _ = jax.jit(spread.step)(jax.jit(spread.init)(jax.random.key(0)), None)
    np.testing.assert_array_equal(state["params"], 1)


def test_groups_that_nothing_spreads_within_are_told():
    data = vectors()
    learner = jdl.supervised(Linear(), jdl.losses.squared_error, optax.sgd(0.1), example=data)
    training = jdl.seeds(learner, 2, spread=2)
    with pytest.warns(UserWarning, match=r"seeds\(spread=2\): nothing inside spreads .*jdl.distribute\(learner"):
        training.init(jax.random.key(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jdl.seeds(jdl.distribute(learner, "data", "2"), 2, spread=2).init(jax.random.key(0))
