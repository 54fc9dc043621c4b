import tomllib
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import LOCKS, ROOT


def _locked(lock: str) -> Iterator[Requirement]:
    for line in (ROOT / lock).read_text().splitlines():
        if not line.startswith("#"):
            yield Requirement(line)


def _declared() -> Iterator[tuple[str, Requirement]]:
    """Each dependency, with every lock that has to hold it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock in LOCKS:
        groups = {"peers"} if lock == "requirements-peers.lock" else set(extras) - {"peers"}
        for group in (project["dependencies"], *(extras[name] for name in sorted(groups))):
            for line in group:
                requirement = Requirement(line)
                if requirement.name != "fedagg":
                    yield lock, requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_one_exact_public_version(lock: str) -> None:
    for requirement in _locked(lock):
        assert requirement.url is None
        specifiers = [(part.operator, "+" in part.version) for part in requirement.specifier]
        assert specifiers == [("==", False)], str(requirement)


@pytest.mark.parametrize(("lock", "declared"), list(_declared()), ids=str)
def test_every_dependency_is_locked_within_its_bounds(lock: str, declared: Requirement) -> None:
    locked = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in _locked(lock)}
    assert declared.specifier.contains(locked[canonicalize_name(declared.name)])


def test_both_environments_have_the_same_versions_but_of_what_they_disagree_about() -> None:
    ours, theirs = (
        {str(requirement.name): requirement for requirement in _locked(lock)} for lock in LOCKS
    )
    differing = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    # flwr asks for older ones: of cryptography, and of what formatters match paths with.
    assert differing == {"cryptography", "pathspec"}


def test_the_tests_run_on_the_locked_versions() -> None:
    wrong = {
        requirement.name: version(requirement.name)
        for requirement in _locked("requirements.lock")
        if requirement.marker is None and version(requirement.name) not in requirement.specifier
    }
    assert wrong == {}
