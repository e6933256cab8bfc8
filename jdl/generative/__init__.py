"""Generative models, and how near to real data is what they make."""

from jdl.generative.measures import (
    KernelDistance,
    Neighborhoods,
    frechet_distance,
    kernel_distance,
    neighborhoods,
    psnr,
    ssim,
)

__all__ = [
    "KernelDistance",
    "Neighborhoods",
    "frechet_distance",
    "kernel_distance",
    "neighborhoods",
    "psnr",
    "ssim",
]
