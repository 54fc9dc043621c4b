"""Settings of how updates are compressed."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from server.config.section import Section

if TYPE_CHECKING:
    pass


class CompressionConfig(Section):
    """What of an update is sent."""

    method: Literal["dense", "top-k", "rand-k", "announced", "projection"] = Field(
        default="dense", description="dense: everything; docs/Compression.md"
    )
    ratio: float = Field(
        default=0.1,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="numbers sent, as a share of the model's elements",
    )
    value_type: Literal["float32", "float16", "bfloat16", "int8", "int4"] | None = Field(
        default=None,
        description="how a number is written; none: float16, but float32 if dense or shared",
    )
    error_feedback: bool = Field(
        default=True, description="devices keep what they did not send for their next update"
    )
    residual_decay: float = Field(
        default=1.0, gt=0, le=1, description="of what is kept, for each round missed"
    )
    max_residual_age: int = Field(
        default=20, ge=1, le=10_000, description="rounds after which it is dropped"
    )
    random_share: float = Field(
        default=0.5, ge=0, le=1, description="of announced coordinates that are drawn at random"
    )
    zstd: bool = Field(default=True, description="take updates that went through zstd")

    @property
    def is_dense(self) -> bool:
        """Whether every coordinate is sent."""
        return self.method == "dense"
