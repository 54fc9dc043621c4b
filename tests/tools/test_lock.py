import tomllib
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import ROOT, pins


def _locked() -> Iterator[Requirement]:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            yield Requirement(line)


def _declared() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # The lock holds what the dev extra reaches; ray is large and nothing here needs it.
    extras = {k: v for k, v in project["optional-dependencies"].items() if k != "ray"}
    for group in (project["dependencies"], *extras.values()):
        for line in group:
            requirement = Requirement(line)
            if requirement.name != "fedagg":
                yield requirement


def test_every_line_is_one_exact_public_version() -> None:
    for requirement in _locked():
        assert requirement.url is None
        specifiers = [(part.operator, "+" in part.version) for part in requirement.specifier]
        assert specifiers == [("==", False)], str(requirement)


@pytest.mark.parametrize("declared", list(_declared()), ids=str)
def test_every_dependency_is_locked_within_its_bounds(declared: Requirement) -> None:
    locked = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in _locked()}
    assert declared.specifier.contains(locked[canonicalize_name(declared.name)])


def test_the_tests_run_on_the_locked_versions() -> None:
    wrong = {
        requirement.name: version(requirement.name)
        for requirement in _locked()
        if requirement.marker is None and version(requirement.name) not in requirement.specifier
    }
    assert wrong == {}


def test_accelerator_packages_are_left_out() -> None:
    compiled = (
        "cuda-toolkit==1\nnumpy==2\nnvidia-nccl-cu13==3 ; sys_platform == 'linux'\ntriton==4\n"
    )
    assert pins(compiled) == "numpy==2\n"
    assert pins("tritonclient==1\ncudatools==1\n") == "tritonclient==1\ncudatools==1\n"
