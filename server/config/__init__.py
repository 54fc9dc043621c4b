"""What coordinators and share holders are told, read once and checked as a whole."""

from server.config.formats import EMBEDDED
from server.config.holder_config import HolderConfig
from server.config.loading import (
    ENVIRONMENT_PREFIX,
    ConfigError,
    load_config,
    load_holder_config,
    load_settings,
    parse_config,
    parse_holder_config,
)
from server.config.server_config import (
    AdminConfig,
    EnginesConfig,
    EnrollmentConfig,
    LimitsConfig,
    ListenConfig,
    ObservabilityConfig,
    RoundsConfig,
    ServerConfig,
    StoreConfig,
    TlsConfig,
)
from server.config.task_config import (
    AggregationConfig,
    CriteriaConfig,
    PlanConfig,
    TaskConfig,
    ValidationConfig,
)

__all__ = [
    "EMBEDDED",
    "ENVIRONMENT_PREFIX",
    "AdminConfig",
    "AggregationConfig",
    "ConfigError",
    "CriteriaConfig",
    "EnginesConfig",
    "EnrollmentConfig",
    "HolderConfig",
    "LimitsConfig",
    "ListenConfig",
    "ObservabilityConfig",
    "PlanConfig",
    "RoundsConfig",
    "ServerConfig",
    "StoreConfig",
    "TaskConfig",
    "TlsConfig",
    "ValidationConfig",
    "load_config",
    "load_holder_config",
    "load_settings",
    "parse_config",
    "parse_holder_config",
]
