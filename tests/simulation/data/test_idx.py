"""IDX files written by hand, whole and damaged."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from simulation.data.idx import read_idx
from simulation.errors import DatasetError

# Two images of 2x3 pixels, spelled out after the published description of the format.
IMAGES = (
    b"\x00\x00\x08\x03"
    b"\x00\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00\x03"
    b"\x00\x01\x02\x03\x04\x05\xfa\xfb\xfc\xfd\xfe\xff"
)
LABELS = b"\x00\x00\x08\x01\x00\x00\x00\x03\x07\x00\x09"


def write(directory: Path, name: str, data: bytes) -> Path:
    path = directory / name
    path.write_bytes(data)
    return path


def test_plain_and_compressed_files_read_alike(tmp_path: Path) -> None:
    expected = np.array(
        [[[0, 1, 2], [3, 4, 5]], [[250, 251, 252], [253, 254, 255]]], dtype=np.uint8
    )
    plain = read_idx(write(tmp_path, "images", IMAGES), num_dimensions=3)
    packed = read_idx(write(tmp_path, "images.gz", gzip.compress(IMAGES)), num_dimensions=3)
    assert plain.dtype == np.uint8
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(packed, expected)


def test_labels_have_one_dimension(tmp_path: Path) -> None:
    labels = read_idx(write(tmp_path, "labels", LABELS), num_dimensions=1)
    assert labels.tolist() == [7, 0, 9]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with"),
        (b"\x00\x00\x08", "starts with"),
        (b"\x1f\x8b" + LABELS[2:], "starts with"),
        (LABELS.replace(b"\x08", b"\x0d"), "starts with"),  # float elements
        (IMAGES, "starts with"),  # three dimensions where one is expected
        (LABELS[:6], "ends inside its header"),
        (LABELS[:-1], "declares 3 elements but holds 2"),
        (LABELS + b"\x00", "declares 3 elements but holds more"),
        (b"\x00\x00\x08\x01\xff\xff\xff\xff", "more than"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_idx(write(tmp_path, "labels", data), num_dimensions=1)


@pytest.mark.parametrize("cut", [1, 10, 25])
def test_damaged_compression_is_refused(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(LABELS)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_idx(write(tmp_path, "labels.gz", packed[:cut]), num_dimensions=1)
    flipped = packed[:12] + bytes((packed[12] ^ 0xFF,)) + packed[13:]
    with pytest.raises(DatasetError, match="cannot be read"):
        read_idx(write(tmp_path, "labels.gz", flipped), num_dimensions=1)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_idx(tmp_path / "nothing", num_dimensions=1)
