"""What handing shares to their holders takes from the participation it is part of."""

from collections.abc import Callable
from dataclasses import dataclass

from client.runtime import Runtime
from client.transport.federation_transport import Traffic
from client.transport.retry import Retry


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryContext:
    """One delivery's time, and who is told of it.

    Attributes:
        runtime: clock, sleep and randomness.
        deadline_at: instant of the runtime's clock after which the round takes no more updates.
        traffic: where the bytes sent are counted.
        on_retry: told before each wait for another try.
    """

    runtime: Runtime
    deadline_at: float
    traffic: Traffic
    on_retry: Callable[[Retry], None] | None = None
