"""Settings of differential privacy."""

from typing import Literal

from pydantic import Field

from server.config.section import Section


class PrivacyConfig(Section):
    """How much the published models may tell about one device."""

    noise: Literal["none", "central", "holders", "device"] = Field(
        default="none",
        description="who adds it: the coordinator, the share holders, or every device",
    )
    epsilon: float = Field(
        default=1.0, gt=0, le=1000, allow_inf_nan=False, description="the budget, at `delta`"
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, allow_inf_nan=False)
    noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="z; 0: the least with which num-rounds fit the budget",
    )
    mechanism: Literal["gaussian", "banded"] = Field(
        default="gaussian", description="banded: correlated noise, for runs without sampling"
    )
    bands: int = Field(default=1, ge=1, le=1024, description="of mechanism banded")
    sampling: Literal["poisson", "fixed-size", "none"] = Field(
        default="none", description="what amplification is claimed; docs/Privacy.md says when"
    )
    sampling_probability: float = Field(
        default=0.0, ge=0, le=1, description="q of poisson: each device's chance in each round"
    )
    population: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="devices of the task; with poisson and fixed-size",
    )
    accountant: Literal["pld", "rdp"] = Field(
        default="pld", description="what enforces the budget; both are reported"
    )
    adaptive_clipping: bool = Field(
        default=False, description="move the clipping norm to target-quantile of the updates"
    )
    target_quantile: float = Field(default=0.9, gt=0, lt=1)
    clipping_learning_rate: float = Field(default=0.2, gt=0, le=10)
    count_noise: float = Field(
        default=0.0, ge=0, description="of the count it rests on; 0: a twentieth of the cohort"
    )

    @property
    def is_on(self) -> bool:
        """Whether anybody adds noise, devices or the coordinator."""
        return self.noise != "none"
