"""Small tables that come with scikit-learn: three for classification, one for regression.

Inputs are float32 `[examples, features]`, standardized with the mean and deviation of the training part alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jdl.data.dataset import Dataset, Normalizer, split

FRACTIONS = (0.8, 0.0, 0.2)


def iris(split_seed: int = 0, fractions: Sequence[float] = FRACTIONS, standardize: bool = True) -> Dataset:
    """Load 150 irises of 3 species, with 4 measurements in centimeters each (Fisher 1936).

    Args:
        split_seed: determines the random split.
        fractions: the fractions for train, validation and test.
        standardize: whether to standardize the inputs.
    """
    from sklearn.datasets import load_iris

    return _classification("iris", load_iris, split_seed, fractions, standardize)


def wine(split_seed: int = 0, fractions: Sequence[float] = FRACTIONS, standardize: bool = True) -> Dataset:
    """Load 178 wines of 3 cultivars, with 13 chemical measurements each (Forina et al., UCI).

    Args:
        split_seed: determines the random split.
        fractions: the fractions for train, validation and test.
        standardize: whether to standardize the inputs.
    """
    from sklearn.datasets import load_wine

    return _classification("wine", load_wine, split_seed, fractions, standardize)


def breast_cancer(split_seed: int = 0, fractions: Sequence[float] = FRACTIONS, standardize: bool = True) -> Dataset:
    """Load 569 tumors (0: malignant, 1: benign), with 30 measurements of cell nuclei each (Street et al. 1993, UCI).

    Args:
        split_seed: determines the random split.
        fractions: the fractions for train, validation and test.
        standardize: whether to standardize the inputs.
    """
    from sklearn.datasets import load_breast_cancer

    return _classification("breast_cancer", load_breast_cancer, split_seed, fractions, standardize)


def diabetes(
    split_seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    standardize: bool = True,
    standardize_target: bool = False,
) -> Dataset:
    """Load 442 patients with 10 measurements each; the target is progression after a year (Efron et al. 2004).

    Targets are float32 `[examples]`, from 25 to 346.

    Args:
        split_seed: determines the random split.
        fractions: the fractions for train, validation and test.
        standardize: whether to standardize the inputs.
        standardize_target: whether to standardize the targets, too, by the training part; `target_normalizer.invert`
            then takes predictions back to the original scale.
    """
    from sklearn.datasets import load_diabetes

    # scikit-learn's default scaling would use the test part, too.
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
