"""How a demonstration's updates are compressed, and what its models may tell about a device."""

from collections.abc import Mapping
from dataclasses import dataclass

from updates.compression_plan import Method

TomlValue = str | float | int | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionTerms:
    """The compression of a demonstration.

    Attributes:
        method: a name of `updates.compression_plan.Method`.
        ratio: numbers sent, as a share of the model's elements, in (0, 1].
        value_type: a name of `updates.compression_plan.ValueType`; None: the server's choice.
    """

    method: str = Method.DENSE.value
    ratio: float = 0.1
    value_type: str | None = None

    @property
    def is_dense(self) -> bool:
        """Whether updates travel as they are."""
        return self == CompressionTerms()

    def section(self) -> Mapping[str, TomlValue]:
        """Return the server's settings."""
        section: dict[str, TomlValue] = {"method": self.method, "ratio": self.ratio}
        if self.value_type is not None:
            section["value-type"] = self.value_type
        return section


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldPrivacy:
    """The privacy budget of a demonstration, which is spent evenly over its rounds.

    Attributes:
        epsilon: the budget at `delta`, above 0.
        delta: in (0, 1).
        clipping_norm: C, above 0.
    """

    epsilon: float = 8.0
    delta: float = 1e-5
    clipping_norm: float = 1.0

    def section(self, *, is_shared: bool) -> Mapping[str, TomlValue]:
        """Return the server's settings."""
        noise = "holders" if is_shared else "central"
        return {"noise": noise, "epsilon": self.epsilon, "delta": self.delta}
