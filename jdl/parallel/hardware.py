"""Published figures of accelerators, and the least time that a step could take there."""

from collections.abc import Sequence
from typing import NamedTuple

from jdl.parallel.hlo import Collective


class Hardware(NamedTuple):
    """One kind of device, and how such devices are connected. Units of bytes are powers of ten."""

    name: str
    flops: float  # per second, bfloat16, dense
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes per second
    link: float  # bytes per second that each device sends to others of its node or pod
    node: int  # devices per node or pod
    network: float  # bytes per second that each device sends beyond its node or pod


# NVIDIA's data sheets: H100 SXM 989 TFLOP/s dense, 80 GB at 3.35 TB/s; H200 141 GB at 4.8 TB/s; both 900 GB/s NVLink
# (both directions together), eight per node, each with a 400 Gb/s adapter. Google Cloud's pages: TPU v5p 459 TFLOP/s,
# 95 GB at 2,765 GB/s, 1,200 GB/s (both directions together), pods of 8,960, 50 Gb/s per chip between pods; v6e
# 918 TFLOP/s, 32 GB at 1,638 GB/s, 800 GB/s (both directions together), pods of 256; the speed between them is assumed
# to be that of v5p. Read in November 2026.
HARDWARE = {
    one.name: one
    for one in (
        Hardware("h100", 989e12, 80e9, 3.35e12, 450e9, 8, 50e9),
        Hardware("h200", 989e12, 141e9, 4.8e12, 450e9, 8, 50e9),
        Hardware("v5p", 459e12, 95e9, 2.765e12, 600e9, 8960, 6.25e9),
        Hardware("v6e", 918e12, 32e9, 1.638e12, 400e9, 256, 6.25e9),
    )
}


class Estimate(NamedTuple):
    """The least time of a step in seconds, for each part of the device.

    The parts are assumed to be busy all the time, in parallel with each other.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """The time of the slowest part."""
        return max(self)

    @property
    def bound(self) -> str:
        """The name of the slowest part."""
        return max(self._fields, key=lambda name: getattr(self, name))


def estimate(
    hardware: Hardware, flops: int | float, traffic: int | float, collectives: Sequence[Collective]
) -> Estimate:
    """Estimate the least time of a step from what it does on one device (`jdl.parallel.hlo.Program`).

    What a group of devices sends between nodes goes over the network adapters of all its devices in a node, as
    parallel rings.

    Args:
        hardware: the kind of device.
        flops: floating-point operations on one device.
        traffic: bytes of memory traffic on one device.
        collectives: the collectives of the step.
    """
    network = 0.0
    for one in collectives:
        nodes = len({device // hardware.node for device in one.group})
        adapters = hardware.network * len(one.group) / nodes if nodes > 1 else hardware.link
        network += one.bytes / min(hardware.link, adapters)
    return Estimate(flops / hardware.flops, traffic / hardware.bandwidth, network)
