"""A fault: a few characters of the source, and what takes their place."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FAULTS: Final = Path(__file__).with_name("faults.toml")


class FaultError(Exception):
    """A fault that cannot be planted, or a tree in which none can be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One defect.

    Attributes:
        name: what the code does wrong, in a few words.
        file: in which it is planted, relative to the project.
        breaks: what follows for whoever uses it.
        old: text that is in the file exactly once.
        new: what takes its place.
        tests: folders or modules that test it, beside those that are seen to reach it.
    """

    name: str
    file: str
    breaks: str
    old: str
    new: str
    tests: tuple[str, ...] = ()

    def place(self, text: str) -> int:
        """Return the line of the file, from 1, in which the old text begins.

        Raises:
            FaultError: if the text is not there exactly once.
        """
        if (found := text.count(self.old)) != 1:
            msg = f"{self.name}: its text must be in {self.file} once, it is there {found} times"
            raise FaultError(msg)
        start = text.index(self.old) + len(self.old) - len(self.old.lstrip())
        return text.count("\n", 0, start) + 1

    def planted(self, text: str) -> str:
        """Return the file with the fault in it.

        Raises:
            FaultError: if the old text is not there exactly once, or the new one is the same.
        """
        self.place(text)
        if self.old == self.new:
            msg = f"{self.name}: it changes nothing"
            raise FaultError(msg)
        return text.replace(self.old, self.new)


def load_faults(path: Path = FAULTS) -> dict[str, Fault]:
    """Read the faults, by name.

    Raises:
        FaultError: if two have one name.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    faults = [Fault(**{**table, "tests": tuple(table.get("tests", ()))}) for table in tables]
    by_name = {fault.name: fault for fault in faults}
    if len(by_name) < len(faults):
        msg = f"{path.name}: every fault needs a name of its own"
        raise FaultError(msg)
    return by_name


def problems(faults: dict[str, Fault], root: Path) -> list[str]:
    """List the faults that cannot be planted in a tree, with the reason."""
    found = []
    for fault in faults.values():
        try:
            fault.planted((root / fault.file).read_text(encoding="utf-8"))
        except (FaultError, OSError) as error:
            found.append(str(error))
    return found
