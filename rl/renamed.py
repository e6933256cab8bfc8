"""Arguments under the names they had in the last version."""

import functools
import warnings
from collections.abc import Callable


def renamed[**P, T](**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: accept each keyword by its old name, too, with a warning; kept for one version.

    Examples:
        >>> @renamed(trace="gae_lambda")
        ... def ppo(gae_lambda=0.95):
        ...     return gae_lambda
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() was given both {old}= and {new}=, its new name")
                message = f"{function.__name__}({old}=) is called {new}= now; the old name goes with the next version"
                warnings.warn(message, FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
