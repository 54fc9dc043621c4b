"""How a demonstration's updates are compressed, and what its models may tell about a device."""

from collections.abc import Mapping
from dataclasses import dataclass

from cli.exit_codes import CliError, ExitCode
from updates.plan import Method, ValueType

TomlValue = str | float | int | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionTerms:
    """The compression of a demonstration.

    Attributes:
        method: a name of `updates.plan.Method`.
        ratio: numbers sent, as a share of the model's elements, in (0, 1].
        value_type: a name of `updates.plan.ValueType`; None: the server's choice.

    Raises:
        CliError: if there is no such method or type, or the ratio is out of range.
    """

    method: str = Method.DENSE.value
    ratio: float = 0.1
    value_type: str | None = None

    def __post_init__(self) -> None:
        _one_of("--compression", self.method, [method.value for method in Method])
        if self.value_type is not None:
            _one_of("--value-type", self.value_type, [kind.value for kind in ValueType])
        if not 0 < self.ratio <= 1:
            msg = f"--compression-ratio={self.ratio} must be in (0, 1]"
            raise CliError(msg, exit_code=ExitCode.USAGE)

    @property
    def is_dense(self) -> bool:
        """Whether updates travel as they are."""
        return self == CompressionTerms()

    def section(self) -> Mapping[str, TomlValue]:
        """The server's settings."""
        section: dict[str, TomlValue] = {"method": self.method, "ratio": self.ratio}
        if self.value_type is not None:
            section["value-type"] = self.value_type
        return section


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTerms:
    """The privacy budget of a demonstration, which is spent evenly over its rounds.

    Attributes:
        epsilon: the budget at `delta`, above 0.
        delta: in (0, 1).
        clipping_norm: C, above 0.

    Raises:
        CliError: if one is out of range.
    """

    epsilon: float = 8.0
    delta: float = 1e-5
    clipping_norm: float = 1.0

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and 0 < self.delta < 1 and self.clipping_norm > 0):
            msg = f"--epsilon={self.epsilon} and --clipping-norm={self.clipping_norm} must be > 0,"
            msg += f" --delta={self.delta} in (0, 1)"
            raise CliError(msg, exit_code=ExitCode.USAGE)

    def section(self, *, is_shared: bool) -> Mapping[str, TomlValue]:
        """The server's settings."""
        noise = "holders" if is_shared else "central"
        return {"noise": noise, "epsilon": self.epsilon, "delta": self.delta}


def _one_of(option: str, value: str, known: list[str]) -> None:
    if value not in known:
        msg = f"{option}={value} must be one of {', '.join(known)}"
        raise CliError(msg, exit_code=ExitCode.USAGE)
