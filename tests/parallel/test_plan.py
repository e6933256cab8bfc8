"""Plans: bytes on each device of meshes that are not there, beside arrays on meshes that are."""

import json

import jax
import optax
import pytest

import jdl
from jdl.cli import main as cli
from jdl.parallel.plan import plan, show


def gpt(width=64):
    model = jdl.nn.GPT(64, 16, width, 2, 8)
    tokens = jax.numpy.zeros((1, 16), int)
    loss = jdl.losses.token_cross_entropy
    return jdl.supervised(model, loss, optax.adamw(1e-3), example={"input": tokens, "target": tokens})


@pytest.mark.parametrize(("devices", "mesh"), [("fsdp", "8"), ("fsdp+tensor", "2x4"), ("sequence", "1x8")])
def test_a_plan_is_what_the_arrays_take(devices, mesh):
    found = plan(gpt(), devices, mesh)
    state = jdl.jit(jdl.distribute(gpt(), devices, mesh)).init(jax.random.key(0))
    for kind, leaves in (("params", state.params), ("optimizer", state.optimizer)):
        arrays = jax.tree.leaves(leaves)
        each = sum(array.addressable_shards[0].data.nbytes for array in arrays)
        assert found.bytes[kind] == (sum(array.nbytes for array in arrays), each)


def test_a_thousand_devices_need_not_be_there():
    found = plan(gpt(1024), "fsdp+tensor", "128x8")
    whole, each = found.bytes["params"]
    assert whole / 1024 <= each < whole / 900
    rows = {array.path: show(array) for array in found.arrays}
    assert rows["params/blocks/layer_0/attention/query/kernel"] == "1,024/data, 1,024/model"
    assert rows["params/blocks/layer_0/feed_forward/down/kernel"] == "4,096/model, 1,024/data"
    assert rows["step"] == ""


def test_a_width_that_512_devices_do_not_divide():
    found = plan(gpt(1600), "fsdp", "512")
    whole, each = found.bytes["params"]
    assert whole / 512 <= each < whole / 480
    rows = {array.path: show(array) for array in found.arrays}
    assert rows["params/blocks/layer_0/attention/query/kernel"] == "1,600/data:16, 1,600/data:32"


@pytest.mark.medium
def test_the_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "char_lm", "--devices", "fsdp", "--mesh", "8", "--batch-size", "16", "--json"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert found["mesh"] == {"data": 8}
    assert found["bytes"]["params"][0] / found["bytes"]["params"][1] > 7.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["char_lm", "--devices", "fsdp", "--mesh", "8x"],
            "mesh='8x': write the numbers of devices along its axes as 8 or",
        ),
        (["char_lm", "--devices", "fsdp", "--mesh", "0"], "mesh='0': give 1 positive number(s)"),
        (["char_lm", "--mesh", "8"], "devices='auto' has no mesh"),
        (
            ["char_lm", "--devices", "tensor", "--mesh", "8"],
            "mesh='8': give 2 positive number(s), of devices along data and model",
        ),
        (["digits"], "digits cannot be planned: it needs a learner(config), and a Config with the fields devices"),
    ],
)
def test_what_cannot_be_planned(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
