"""The line that a demonstration begins with."""

from cli.demo.settings import NUM_COORDINATORS, DemoSettings
from updates.compression_plan import Method


def headline(settings: DemoSettings) -> str:
    """Tell what is about to run."""
    scenario = settings.scenario
    attack = (
        f"{scenario.num_attackers} of them attack ({scenario.attack} x{scenario.attack_scale:g}), "
        if scenario.attack != "none" and scenario.num_attackers
        else ""
    )
    shared = settings.shared
    committee = f", {shared.holders} share holders, {shared.threshold} open a sum" if shared else ""
    return (
        f"{scenario.num_devices} devices, {attack}{scenario.dataset}, alpha {scenario.alpha:g}, "
        f"{settings.aggregator}; {NUM_COORDINATORS} coordinators, 1 store{committee}"
        f"{_terms(settings)}"
    )


def _terms(settings: DemoSettings) -> str:
    compression, privacy = settings.compression, settings.privacy
    parts = []
    if not compression.is_dense:
        kept = "" if compression.method == Method.DENSE.value else f" {compression.ratio:.2%}"
        kind = f" as {compression.value_type}" if compression.value_type else ""
        parts.append(f"{compression.method}{kept}{kind}")
    if privacy is not None:
        parts.append(f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}")
    return "; " + ", ".join(parts) if parts else ""
