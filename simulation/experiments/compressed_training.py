"""Federated averaging of a small model with compressed updates, without a network.

Devices know few classes each. Everything goes through the code of a deployment: the device's
compressor with error feedback, the codec, the aggregator; in shared mode the fixed point and the
sums in the field of secret sharing. Only transport and cryptography are left out.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators import AggregatorConfig, CompressedGradientAggregator, SparseUpdate, Update
from aggregators.engines.engine import LocalEngine
from aggregators.rows.sparse_rows import SparseVector
from client.compression.update_compressor import UpdateCompressor
from client.trainer import Plan
from security.secret_sharing import fixed_point
from security.secret_sharing.field import MersenneField, Words
from simulation.data import datasets
from simulation.dense_layers import Floats
from simulation.errors import ScenarioError
from simulation.experiments import batched_training
from simulation.experiments.batched_training import BatchedTraining, LocalSteps
from updates import coordinate_maps
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.error_feedback import Residual, carried
from updates.index_coding import encode_coordinates
from updates.sparse import Content, SparseValues
from updates.stage import zstd_version
from updates.update_codec import codec_for

RANDOM_SHARE: Final = 0.5  # of announced coordinates
SETTINGS: Final[Mapping[str, tuple[int, int]]] = {"device": (50, 20), "silo": (10, 10)}
"""Devices in the population, and how many take part in a round."""

_HIDDEN: Final = 128
_COHORT_STREAM: Final = 8  # keeps these draws apart from other uses of the same seed
_FIELD: Final = MersenneField(61)
_FRACTION_BITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How updates are compressed, and whether they are shared.

    Attributes:
        ratio: numbers sent, as a share of the model's; without meaning for `DENSE`.
        value_type: how they are written in plain mode; dense updates are float32.
        error_feedback: whether devices keep what they did not send; those with `DENSE` do not.
    """

    method: Method
    ratio: float = 1.0
    shared: bool = False
    value_type: ValueType = ValueType.FLOAT16
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            message = f"ratio={self.ratio} must be in (0, 1]"
            raise ScenarioError(message)
        if self.shared and self.method is Method.TOP_K:
            message = "method=top-k must not be shared: each device's choice would be seen"
            raise ScenarioError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, the same for all cases.

    Attributes:
        dataset: a name of `datasets.DATASETS`.
        setting: a name of `SETTINGS`.
        rounds: from 1.
        steps: what a device does in a round.
        clipping_norm: in plain mode; 0: not clipped, as is the default of plain rounds.
        shared_clipping_norm: in shared mode, which needs one; > 0.
        residual_decay: of what devices keep, for each round missed, in (0, 1].
        data_dir: as in `datasets.load`.
    """

    dataset: str = "digits"
    setting: str = "device"
    rounds: int = 500
    steps: LocalSteps = field(default_factory=LocalSteps)
    clipping_norm: float = 0.0
    shared_clipping_norm: float = 2.0
    residual_decay: float = 1.0
    data_dir: Path | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the model's layers."""
        data = datasets.load(self.dataset, self.data_dir)
        return (data.x_train.shape[1], _HIDDEN, data.num_classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedRun:
    """What a run came to.

    Attributes:
        accuracy: on the test samples, after the last round.
        update_bytes: mean bytes of an update; in shared mode of one of its shares, of which a
            device sends as many as the committee's scheme has bodies.
    """

    accuracy: float
    update_bytes: float


def train(task: Task, case: Case, seed: int) -> CompressedRun:
    """Train one model.

    Raises:
        DatasetError: if the data cannot be loaded.

    Guarantees:
        The same for the same arguments, with one build of numpy on one kind of processor.
    """
    data = datasets.load(task.dataset, task.data_dir)
    population, cohort = SETTINGS[task.setting]
    shards = batched_training.label_shards(data.y_train, population, seed)
    training = BatchedTraining(task.sizes, data.x_train, data.y_train, shards, seed)
    model = batched_training.initial_model(task.sizes, seed)
    previous, fleet = model, _Fleet(task, case)
    for number in range(1, task.rounds + 1):
        rng = np.random.default_rng([seed, _COHORT_STREAM, number])
        devices = np.sort(rng.permutation(population)[:cohort])
        deltas = training.updates(model, number, devices, task.steps)
        plan = plan_of(task, case, number, model, model - previous)
        aggregate = fleet.mean(plan, number, devices.tolist(), deltas)
        previous, model = model, model + aggregate
    final = batched_training.accuracy(model, task.sizes, data.x_test, data.y_test)
    return CompressedRun(accuracy=final, update_bytes=fleet.bytes_sent / fleet.updates_sent)


def plan_of(
    task: Task, case: Case, round_number: int, model: Floats, change: Floats
) -> CompressionPlan:
    """Give the compression of a round, as a server derives it from what it has published.

    Args:
        task: what is trained.
        case: what is asked for.
        round_number: of the round.
        model: (d,), what devices start from.
        change: (d,), what the round before changed.
    """
    dim, method = len(model), case.method
    is_dense = method is Method.DENSE
    num_values = dim if is_dense else max(1, round(case.ratio * dim))
    digest = hashlib.sha256(model.tobytes()).hexdigest()
    seed = coordinate_maps.map_seed_of("experiment", round_number, digest)
    coordinates = b""
    if method is Method.ANNOUNCED:
        indices = coordinate_maps.announced_indices(
            change, num_values=num_values, random_share=RANDOM_SHARE, seed=seed
        )
        coordinates = encode_coordinates(indices, dim)
    return CompressionPlan(
        method=method,
        dim=dim,
        num_values=num_values,
        value_type=ValueType.FLOAT32 if is_dense else case.value_type,
        map_seed=seed if method in {Method.RAND_K, Method.PROJECTION} else b"",
        coordinates=coordinates,
        error_feedback=case.error_feedback and not is_dense,
        residual_decay=task.residual_decay,
        zstd_version=zstd_version(),
    )


class _Fleet:
    """The devices with what they keep, and the server that combines what they send."""

    def __init__(self, task: Task, case: Case) -> None:
        self.bytes_sent = 0
        self.updates_sent = 0
        self._layers = batched_training.layer_sizes(task.sizes)
        self._shared = case.shared
        self._norm = task.shared_clipping_norm if case.shared else task.clipping_norm
        self._kept: dict[int, Residual] = {}
        self._aggregator = CompressedGradientAggregator(
            AggregatorConfig(), engine=LocalEngine(num_threads=1)
        )

    def mean(
        self, plan: CompressionPlan, number: int, devices: Sequence[int], deltas: Floats
    ) -> Floats:
        """Let devices send what they trained; give the mean of it, expanded."""
        terms = Plan(round=number, clipping_norm=self._norm, compression=plan)
        compressor = UpdateCompressor(plan, terms, clips=self._norm > 0, add_noise=None)
        received: list[Content] = []
        for device, delta in zip(devices, deltas, strict=True):
            kept = carried(
                self._kept.get(device),
                round_number=number,
                decay=plan.residual_decay,
                max_age=plan.max_residual_age,
            )
            update = compressor.compress(delta, kept)
            received.append(self._sent(plan, update.content, b"%d %d" % (number, device)))
            if plan.error_feedback:
                remaining = compressor.remaining(update, received[-1])
                self._kept[device] = Residual(vector=remaining, round=number)
        self.updates_sent += len(devices)
        mean = self._shared_mean(received) if self._shared else self._plain_mean(received)
        return coordinate_maps.linear_map(plan).expand(mean) if plan.is_common_map else mean

    def _sent(self, plan: CompressionPlan, content: Content, seed: bytes) -> Content:
        """Return what the other side has of it."""
        if self._shared:
            words = _encoded(content)
            self.bytes_sent += len(words) * _FIELD.word_bytes
            return _decoded(words).astype(np.float32)
        codec = codec_for(plan, self._layers)
        payload = codec.encode(content, seed=seed)
        self.bytes_sent += len(payload)
        return codec.decode(payload)

    def _plain_mean(self, received: Sequence[Content]) -> Floats:
        updates = [_as_update(f"{place:04d}", content) for place, content in enumerate(received)]
        return self._aggregator.aggregate(updates).vector

    def _shared_mean(self, received: Sequence[Content]) -> Floats:
        """Add up in the field, as share holders do; only the sum is decoded."""
        total = _encoded(received[0])
        for content in received[1:]:
            total = (total + _encoded(content)) % np.uint64(_FIELD.modulus)
        return (_decoded(total) / len(received)).astype(np.float32)


def _encoded(content: Content) -> Words:
    if isinstance(content, SparseValues):
        message = "chosen coordinates must not be shared"
        raise ScenarioError(message)
    return fixed_point.encode(content, fraction_bits=_FRACTION_BITS, field=_FIELD)


def _decoded(words: Words) -> NDArray[np.float64]:
    return fixed_point.decode(words, fraction_bits=_FRACTION_BITS, field=_FIELD)


def _as_update(key: str, content: Content) -> SparseUpdate | Update:
    if isinstance(content, SparseValues):
        vector = SparseVector(indices=content.indices, values=content.values, dim=content.dim)
        return SparseUpdate(key=key, vector=vector, num_samples=1)
    return Update(key=key, vector=content, num_samples=1)
