"""The device side of fedagg: give it a trainer and the address of a server.

    config = ClientConfig(
        servers=("127.0.0.1:50051",), task="digits", device_id="a1", insecure=True
    )
    MobileClient(config, trainer).run_forever()

PyTorch models train with `client.trainers.torch.TorchTrainer`; Flower's `NumPyClient` runs
unmodified in a `FlowerClientAdapter`. Everything else implements `Trainer`. With
`ClientConfig.sharing` set, updates are sealed to share holders, so that the server cannot read one.
Rounds may ask for compressed updates; with `ClientConfig.state_dir` set, what compression leaves
out of an update survives a restart, and is sent later.
"""

from client.config import ClientConfig, RetryPolicy, SharingConfig, TlsFiles
from client.errors import ClientConfigError, ErrorReason, FedaggError, RefusedError
from client.hooks import ClientEvent, ClientHooks, EventKind
from client.mobile_client import MobileClient
from client.outcome import Outcome, RoundMetrics, RoundOutcome
from client.runtime import Runtime
from client.trainer import Evaluation, Evaluator, Plan, Trainer, TrainingResult, Weights
from client.trainers.flower import FlowerClientAdapter
from client.transport.connection import ServerPool
from client.transport.federation_transport import FederationTransport
from client.transport.messages import Assignment, DeviceState, Receipt, SealedPayload, Submission
from security.shared_round.terms.parameter_facts import Checks

__all__ = [
    "Assignment",
    "Checks",
    "ClientConfig",
    "ClientConfigError",
    "ClientEvent",
    "ClientHooks",
    "DeviceState",
    "ErrorReason",
    "Evaluation",
    "Evaluator",
    "EventKind",
    "FedaggError",
    "FederationTransport",
    "FlowerClientAdapter",
    "MobileClient",
    "Outcome",
    "Plan",
    "Receipt",
    "RefusedError",
    "RetryPolicy",
    "RoundMetrics",
    "RoundOutcome",
    "Runtime",
    "SealedPayload",
    "ServerPool",
    "SharingConfig",
    "Submission",
    "TlsFiles",
    "Trainer",
    "TrainingResult",
    "Weights",
]
