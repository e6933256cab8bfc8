"""Small tables that come with scikit-learn: three to classify, one to regress.

Inputs are float32 `[examples, features]`, standardized by the training part alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jdl.data.dataset import Dataset, Normalizer, split

FRACTIONS = (0.8, 0.0, 0.2)


def iris(split_seed: int = 0, fractions: Sequence[float] = FRACTIONS, standardize: bool = True) -> Dataset:
    """150 irises of 3 species, 4 measurements in centimeters each (Fisher 1936)."""
    from sklearn.datasets import load_iris

    return _classification("iris", load_iris, split_seed, fractions, standardize)


def wine(split_seed: int = 0, fractions: Sequence[float] = FRACTIONS, standardize: bool = True) -> Dataset:
    """178 wines of 3 cultivars, 13 chemical measurements each (Forina et al., UCI)."""
    from sklearn.datasets import load_wine

    return _classification("wine", load_wine, split_seed, fractions, standardize)


def breast_cancer(split_seed: int = 0, fractions: Sequence[float] = FRACTIONS, standardize: bool = True) -> Dataset:
    """569 tumors, 30 measurements of cell nuclei each; 0 malignant, 1 benign (Street et al. 1993, UCI)."""
    from sklearn.datasets import load_breast_cancer

    return _classification("breast_cancer", load_breast_cancer, split_seed, fractions, standardize)


def diabetes(
    split_seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    standardize: bool = True,
    standardize_target: bool = False,
) -> Dataset:
    """442 patients, 10 measurements each; the target is progression after a year (Efron et al. 2004).

    Targets are float32 `[examples]`, 25 to 346. With `standardize_target` they are standardized by the
    training part, and `target_normalizer.invert` takes predictions back.
    """
    from sklearn.datasets import load_diabetes

    # scikit-learn's own scaling, the default there, uses the test part too.
    bunch: Any = load_diabetes(scaled=False)
    data = {"input": bunch.data.astype(np.float32), "target": bunch.target.astype(np.float32)}
    return _dataset("diabetes", data, None, split_seed, fractions, standardize, standardize_target)


def _classification(
    name: str, load: Callable[[], Any], split_seed: int, fractions: Sequence[float], standardize: bool
) -> Dataset:
    bunch = load()
    data = {"input": bunch.data.astype(np.float32), "target": bunch.target.astype(np.int32)}
    class_names = tuple(str(class_name) for class_name in bunch.target_names)
    return _dataset(name, data, class_names, split_seed, fractions, standardize, False)


def _dataset(
    name: str,
    data: dict[str, np.ndarray],
    class_names: tuple[str, ...] | None,
    split_seed: int,
    fractions: Sequence[float],
    standardize: bool,
    standardize_target: bool,
) -> Dataset:
    train, validation, test = split(data, fractions, seed=split_seed)
    normalizers: dict[str, Normalizer] = {}
    for key, wanted in (("input", standardize), ("target", standardize_target)):
        if wanted:
            normalizers[key] = Normalizer.fit(train[key])
            for part in (train, validation, test):
                if part is not None:
                    part[key] = normalizers[key](part[key])
    return Dataset(
        train,
        validation,
        test,
        num_classes=None if class_names is None else len(class_names),
        class_names=class_names,
        name=name,
        normalizer=normalizers.get("input"),
        target_normalizer=normalizers.get("target"),
    )
