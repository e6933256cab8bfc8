"""The functions of a learner that `jdl.jit` has compiled."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PyTree

from jdl.core import seam
from jdl.core.row_division import divide_rows_alike

divide_rows_alike()


class Compiled:
    """A compiled function of a learner. Inside another transform it runs uncompiled, as a part of that program.

    Attributes:
        signatures: the shapes and types of the last argument, one entry per compilation.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        """Compile at the first call.

        Args:
            function: a pure function.
            **options: as for `jax.jit`.
        """
        functools.update_wrapper(self, function, updated=())
        self.signatures: list[PyTree] = []
        self._function = function

        @functools.wraps(function)
        def traced(*arguments: Any) -> Any:
            signature = jax.tree.map(jax.typeof, arguments[-1])
            if signature not in self.signatures:
                self.signatures.append(signature)
            return function(*arguments)

        self._fast = jax.jit(traced, **options)

    def __call__(self, *arguments: Any) -> Any:
        """Run the compiled function; the plain one where a transform acts, which a program made before would lack."""
        return self._fast(*arguments) if seam.untouched() else self._function(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """Return the program for arguments like these, to be compiled or looked at, as `jax.jit(...).lower` does."""
        return self._fast.lower(*arguments)


class CompiledOnce:
    """As `Compiled`, for a function that runs once: on a CPU it is compiled with fewer optimizations.

    At LLVM's highest level, random numbers of a hundred shapes take minutes to compile.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Compile at the first call.

        Args:
            function: a pure function.
        """
        functools.update_wrapper(self, function, updated=())
        self._function = function

    @functools.cached_property
    def _fast(self) -> Any:  # made at the first call, because asking for the backend starts JAX's devices
        fewer = {"xla_backend_optimization_level": 2} if jax.default_backend() == "cpu" else None
        return jax.jit(self._function, compiler_options=fewer)

    def __call__(self, *arguments: Any) -> Any:
        """Run the compiled function, or the plain one inside another program."""
        tracing = isinstance(jnp.zeros(()), Tracer)  # JAX refuses compiler options inside another program
        return self._function(*arguments) if tracing or not seam.untouched() else self._fast(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As in `Compiled`."""
        return self._fast.lower(*arguments)
