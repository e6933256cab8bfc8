"""Measures of how near to real data is what generative models make."""

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
