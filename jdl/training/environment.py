"""What a run was made with: versions, devices, the git revision, the command and its environment variables."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import jax

from jdl.runtime.cores import environment_devices

_PACKAGES = ("jdl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn", "gymnasium")


def environment() -> dict[str, Any]:
    """Describe this process as JSON values: versions, devices, git revision, command and environment variables.

    A repetition of a run has to match these to give the same bits.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": environment_devices(),
        "git": _git_revision(),
        "command": sys.argv,
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("JAX_", "XLA_", "JDL_"))},
        "x64": bool(jax.config.jax_enable_x64),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> dict[str, Any] | None:
    """Return the git revision of the working directory and whether it has uncommitted changes; None outside a repo."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"revision": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return None
