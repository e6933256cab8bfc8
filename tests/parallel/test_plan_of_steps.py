"""Steps on paper: operations, collectives and bytes beside closed forms, and what XLA writes of groups."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdl
from jdl.cli import main as cli
from jdl.cli.plan import show_work
from jdl.core.accumulators import Mean
from jdl.core.learner import Traits
from jdl.parallel import flops, hlo
from jdl.parallel.hardware import HARDWARE, Hardware, estimate
from jdl.parallel.plan import work

WIDTH, BATCH = 64, 32


class Deep(nn.Module):
    """Matrices of one size, so that all is to be counted by hand."""

    layers: int = 3

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = jax.nn.relu(nn.Dense(WIDTH, use_bias=False)(x))
        return x


def deep(layers=3):
    data = {"input": np.zeros((1, WIDTH), np.float32), "target": np.zeros((1, WIDTH), np.float32)}
    return jdl.supervised(Deep(layers), jdl.losses.squared_error, optax.sgd(0.1), example=data)


def sent(found, kind):
    return sum(one.bytes for one in found.program.collectives if one.kind == kind)


def test_operations_and_gradients_of_a_data_parallel_step():
    found = work(deep(), "data", "8", BATCH)
    product = 2 * BATCH * WIDTH**2
    assert found.model_flops == product * (3 + 3 + 2)  # forward, by the weights, by the inputs of all but the first
    assert found.program.flops == found.model_flops / 8
    parameters = 3 * WIDTH**2 * 4
    assert sent(found, "all-reduce") == pytest.approx(2 * 7 / 8 * parameters, rel=0.01)  # and a few scalars
    assert sent(found, "all-gather") == 0
    assert {len(one.group) for one in found.program.collectives} == {8}
    assert found.arguments >= parameters
    alone = work(deep(), "single", "", BATCH)
    assert alone.device_count == 1
    assert alone.program.flops == alone.model_flops == found.model_flops
    assert alone.program.collectives == []


def test_parameters_that_are_shared_out_are_gathered_twice():
    found = work(deep(), "fsdp", "8", BATCH)
    parameters = 3 * WIDTH**2 * 4
    # Forward, and backward but for the first layer, whose inputs have no gradient; what was gathered may be kept.
    assert 7 / 8 * parameters <= sent(found, "all-gather") <= 2 * 7 / 8 * parameters
    assert found.arguments < work(deep(), "data", "8", BATCH).arguments / 4


def test_layers_that_are_shared_out_send_activations():
    model = jdl.nn.MLP((4 * WIDTH, WIDTH))
    data = {"input": np.zeros((1, WIDTH), np.float32), "target": np.zeros((1, WIDTH), np.float32)}
    learner = jdl.supervised(model, jdl.losses.squared_error, optax.sgd(0.1), example=data)
    found = work(learner, "tensor", "1x8", BATCH)
    assert found.program.flops == pytest.approx(found.model_flops / 8, rel=0.3)
    assert max(len(one.group) for one in found.program.collectives) == 8
    assert found.program.collectives


@pytest.mark.slow
def test_loops_count_as_often_as_they_run():
    def gpt(scan):
        model = jdl.nn.GPT(64, 16, 32, 4, 4, scan=scan)
        tokens = np.zeros((1, 16), np.int32)
        return jdl.supervised(
            model, jdl.losses.token_cross_entropy, optax.adam(1e-3), example={"input": tokens, "target": tokens}
        )

    one, two = (work(gpt(scan), "fsdp", "4", 8) for scan in (False, True))
    assert one.model_flops == two.model_flops
    assert two.program.flops == pytest.approx(one.program.flops, rel=0.01)
    # A loop gathers a layer's parameters in both passes; without one what is gathered forward is kept.
    assert sent(one, "all-gather") < sent(two, "all-gather") < 2.1 * sent(one, "all-gather")


def test_operations_as_jax_traces_them():
    matrix = np.zeros((8, 8), np.float32)
    assert flops.count(lambda a: a @ a, matrix) == 2 * 8**3
    looped = lambda a: jax.lax.scan(lambda b, _: (b @ a, None), a, length=5)[0]  # noqa: E731
    assert flops.count(looped, matrix) == 5 * 2 * 8**3
    kernel, image = np.zeros((3, 3, 4, 6), np.float32), np.zeros((2, 10, 10, 4), np.float32)
    convolve = lambda k, x: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    by_hand = 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)
    assert flops.count(convolve, kernel, image) == by_hand
    text = jax.jit(convolve).lower(kernel, image).compile().as_text()
    assert text is not None
    assert hlo.read(text).flops == by_hand


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", (0, 2)),
        ("replica_groups=[2,4]<=[8], dimensions={0}", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", (0, 4)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}", (0, 2)),
        ("replica_groups=mesh['data'=2,'model'=4] {'data'}, dimensions={0}", (0, 4)),
        ("replica_groups=mesh['data'=2,'model'=4] {'model'}, dimensions={0}", (0, 1, 2, 3)),
        ("replica_groups=mesh['data'=2,'model'=4] {'data','model'}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("source_target_pairs={{0,0},{1,1},{2,4},{4,2}}", (2, 4)),
    ],
)
def test_the_groups_of_collectives(written, group):
    assert hlo._group(f"%x), channel_id=1, {written}") == group


def test_a_program_read_from_text():
    text = """HloModule jit_step, num_partitions=4

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%until (now: (s32[], bf16[8,16]{1,0}, /*index=2*/bf16[16,16])) -> pred[] {
  %now = (s32[], bf16[8,16]{1,0}, /*index=2*/bf16[16,16]) parameter(0)
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%now#0, %limit), direction=LT
}

%body (now: (s32[], bf16[8,16]{1,0}, /*index=2*/bf16[16,16])) -> (s32[], bf16[8,16], bf16[16,16]) {
  %now = (s32[], bf16[8,16]{1,0}, /*index=2*/bf16[16,16]) parameter(0)
  %dot.1 = bf16[8,16]{1,0} dot(%now#1, %now#2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %dot.2 = bf16[8,16]{1,0} dot(%now#1, %now#2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-reduce.1 = bf16[8,16]{1,0} all-reduce(%dot.1), replica_groups={{0,1,2,3}}, to_apply=%add
  %all-reduce.2 = bf16[8,16]{1,0} all-reduce(%dot.2), replica_groups={{0,1,2,3}}, to_apply=%add
  %copy.1 = bf16[8,16]{1,0} copy(%all-reduce.1)
  %both = bf16[8,16]{1,0} add(%copy.1, %all-reduce.2)
  ROOT %next = (s32[], bf16[8,16], bf16[16,16]) tuple(%now#0, %both, %now#2)
}

ENTRY %main (now: (s32[], bf16[8,16]{1,0}, /*index=2*/bf16[16,16])) -> (s32[], bf16[8,16], bf16[16,16]) {
  %now = (s32[], bf16[8,16]{1,0}, /*index=2*/bf16[16,16]) parameter(0)
  ROOT %loop = (s32[], bf16[8,16], bf16[16,16]) while(%now), condition=%until, body=%body
}
"""
    program = hlo.read(text)
    assert program.flops == 5 * 2 * 2 * 8 * 16 * 16
    assert program.traffic == 5 * 2 * 2 * (8 * 16 + 8 * 16 + 16 * 16)
    # The two are summed before they are sent.
    assert program.collectives == [hlo.Collective("all-reduce", (0, 1, 2, 3), 5, 5 * 2 * 3 / 4 * 8 * 16 * 2)]
    assert program.unknown_loops == 0
    unknown = hlo.read(text.replace("s32[] constant(5)", "s32[] negate(%now#0)"))
    assert unknown.unknown_loops == 1
    assert unknown.flops == program.flops / 5


def test_a_loop_of_unknown_length_is_told(capsys):
    def step(state, batch):
        longer = lambda x: x.sum() < 100.0  # noqa: E731
        return state, {"total": Mean.of(jax.lax.while_loop(longer, lambda x: x @ x, batch["input"]))}

    example = {"input": jax.ShapeDtypeStruct((8, 8), np.float32)}
    learner = jdl.Learner(lambda key: {"w": jnp.ones(8)}, step, step, traits=Traits(example=example))
    found = work(learner, "single", "", 8)
    assert found.program.unknown_loops == 1
    show_work(found, 8)
    assert "1 loop(s) of unknown length are counted once" in capsys.readouterr().out


def test_a_step_in_half_precision_sends_half_as_much():
    whole, half = (work(one, "fsdp", "8", BATCH) for one in (deep(), jdl.mixed_precision(deep(), "bfloat16")))
    assert sent(half, "all-gather") == sent(whole, "all-gather") / 2
    assert sent(half, "reduce-scatter") == sent(whole, "reduce-scatter") / 2
    alone = work(jdl.mixed_precision(deep(), "bfloat16"), "single", "", BATCH)
    assert alone.program.traffic == work(deep(), "single", "", BATCH).program.traffic / 2


def test_sizes_of_types():
    assert hlo.size("f32[2,3]{1,0}") == 24
    assert hlo.size("(bf16[4]{0}, s8[3]{0}, pred[], /*index=5*/u64[2]{0})") == 8 + 3 + 1 + 16
    assert hlo.size("f8e4m3fn[10]{0}") == 10


def test_the_time_is_that_of_the_slowest_part():
    here = Hardware("here", 100.0, 1.0, 10.0, 5.0, 2, 1.0)
    near, far = hlo.Collective("all-reduce", (0, 1), 1, 10), hlo.Collective("all-reduce", (0, 2), 1, 10)
    assert estimate(here, 1000, 20, [near]) == (10, 2, 2)
    assert estimate(here, 1000, 20, [near]).bound == "compute"
    assert estimate(here, 100, 20, [near, far]) == (1, 2, 12)
    assert estimate(here, 100, 20, [near, far]).bound == "network"
    whole_nodes = hlo.Collective("all-reduce", (0, 1, 2, 3), 1, 10)
    assert estimate(here, 100, 20, [whole_nodes]) == (1, 2, 5)  # two adapters a node


def test_gradients_of_which_each_device_keeps_a_part():
    found = work(deep(), "fsdp", "8", BATCH)
    parameters = 3 * WIDTH**2 * 4
    assert sent(found, "reduce-scatter") == pytest.approx(7 / 8 * parameters)
    assert sent(found, "all-reduce") < 100  # the loss


def test_the_command_plans_a_step(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [
                "plan",
                "fashion_mnist",
                "--network",
                "mlp",
                "--devices",
                "data",
                "--mesh",
                "4",
                "--batch-size",
                "64",
                "--json",
            ]
        )
    assert ended.value.code == 0
    said = capsys.readouterr().out
    step = json.loads(said.splitlines()[-1])["step"]
    assert step["device_count"] == 4
    assert step["hardware"].keys() == HARDWARE.keys()
    assert 0 < step["hardware"]["h100"]["mfu"] < 1
    assert "all-reduce" in said


@pytest.mark.slow
def test_more_devices_than_a_process_has():
    command = ["plan", "fashion_mnist", "--network", "mlp", "--devices", "data", "--mesh", "4096"]
    planned = subprocess.run(
        [sys.executable, "-m", "jdl", *command, "--batch-size", "8192", "--json"],
        env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=True, timeout=250,
    )  # fmt: skip
    assert json.loads(planned.stdout.splitlines()[-1])["step"]["device_count"] == 4096
