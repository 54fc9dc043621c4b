"""The engine that copies rows to a device of torch."""

from collections.abc import Sequence

import torch

from aggregators.engines.engine_options import EngineOptions
from aggregators.errors import AggregationError
from aggregators.rows.rows import Rows, Vector
from aggregators.rows.torch_rows import TorchRows


class TorchEngine:
    """Rows on one device."""

    def __init__(self, options: EngineOptions) -> None:
        """Find the device.

        Raises:
            AggregationError: if torch has no such device, or it cannot compute in float64.
        """
        has_cuda = torch.cuda.is_available()
        self._num_threads = options.num_threads
        self._device = options.torch_device or ("cuda" if has_cuda else "cpu")
        try:
            torch.zeros(1, dtype=torch.float64, device=self._device).add_(1.0)
        # AssertionError: a torch that was built without CUDA.
        except (RuntimeError, AssertionError, TypeError) as error:
            why = " ".join(str(error).split())
            message = f"engine torch: device {self._device!r} cannot be used: {why}"
            raise AggregationError(message) from error

    @property
    def name(self) -> str:
        """Name of the engine in settings."""
        return "torch"

    @property
    def device(self) -> str:
        """The device, as torch names it."""
        return self._device

    def rows(self, vectors: Sequence[Vector]) -> Rows:
        """Copy vectors to the device; see `Engine`."""
        return TorchRows.of(vectors, device=self._device, num_threads=self._num_threads)

    def close(self) -> None:
        """Do nothing: a device's memory goes with the rows."""
