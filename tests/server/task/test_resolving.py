"""From a task's settings to its compression."""

import pytest

from server.compression.task_compression import MAX_COORDINATES_BYTES
from server.config import TaskConfig
from server.production_server import MAX_MESSAGE_BYTES
from server.task.resolving import task_compression
from tests.server.compression.compressed_task import SIZES
from updates.errors import CompressionError
from updates.stage import zstd_version


def configured(**settings: object) -> TaskConfig:
    tree = {"name": "t", "initial-model": "m", "compression": settings}
    return TaskConfig.model_validate(tree)


def test_dense_float32_is_no_compression() -> None:
    assert task_compression(configured(), SIZES) is None
    assert task_compression(configured(method="dense", zstd=False), SIZES) is None
    quantized = task_compression(configured(**{"value-type": "int8"}), SIZES)
    assert quantized is not None
    assert quantized.zstd_version > 0


def test_frames_are_taken_only_where_the_settings_say_so() -> None:
    taken = task_compression(configured(method="top-k"), SIZES)
    refused = task_compression(configured(method="top-k", zstd=False), SIZES)
    assert taken is not None
    assert taken.zstd_version == zstd_version()
    assert refused is not None
    assert refused.zstd_version == 0


def test_coordinates_that_do_not_fit_into_an_assignment_are_refused() -> None:
    sizes = (60_000_000, 10)
    with pytest.raises(CompressionError, match="announced coordinates"):
        task_compression(configured(method="announced", ratio=0.1), sizes)
    assert task_compression(configured(method="announced", ratio=0.02), sizes) is not None
    assert task_compression(configured(method="projection", ratio=0.1), sizes) is not None
    # The rest of an assignment, with the parameters of a shared round, needs room as well.
    assert MAX_COORDINATES_BYTES + (32 << 10) < MAX_MESSAGE_BYTES
