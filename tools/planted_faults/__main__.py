"""Plant every fault and say which survive: `python -m tools.planted_faults [NAME ...]`.

First the tests of `make test` run once without a fault: they must pass, and show which of them
reach the place of which fault. What they showed is kept in .planted_faults/ until a file of the
tree changes.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from tools.planted_faults import reach
from tools.planted_faults.fault import Fault, FaultError, load_faults, problems
from tools.planted_faults.reach import Reach
from tools.planted_faults.scratch import ROOT, Scratch, scratch, tree_sha256
from tools.planted_faults.trial import Outcome, try_fault


def main(arguments: Sequence[str]) -> int:
    """Return 0 if every fault was found, 1 if one survived, 2 if that says less than it should.

    Faults or tests may not fit the tree, or tests fail where no fault is planted.
    """
    options = _options(arguments)
    try:
        faults = _chosen(load_faults(), options.names)
        known = _reach(load_faults(), options)
        outcomes = _tell(_tried(faults, known, jobs=options.jobs))
    except FaultError as error:
        _say(str(error))
        return 2
    if options.record is not None:
        found = {outcome.fault: outcome.killed_by for outcome in outcomes}
        options.record.write_text(
            json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
    survivors = [outcome.fault for outcome in outcomes if not outcome.killed_by]
    _say(f"{len(outcomes) - len(survivors)} of {len(outcomes)} faults were found")
    return 1 if survivors else 2 * bool(known.failed)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.planted_faults")
    parser.add_argument("names", nargs="*", help="faults to plant; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at once")
    parser.add_argument("--record", type=Path, help="write there what found each, as JSON")
    parser.add_argument(
        "--stale", action="store_true", help="the tests reach what they did, whatever changed since"
    )
    parser.add_argument(
        "--pytest", default="-m 'not long'", help="arguments that leave tests out (%(default)s)"
    )
    return parser.parse_args(arguments)


def _chosen(faults: dict[str, Fault], names: Sequence[str]) -> list[Fault]:
    if wrong := problems(faults, ROOT):
        raise FaultError("\n".join(wrong))
    if unknown := set(names) - faults.keys():
        msg = f"no such fault: {', '.join(sorted(unknown))}"
        raise FaultError(msg)
    return [fault for name, fault in faults.items() if not names or name in names]


def _reach(faults: Mapping[str, Fault], options: argparse.Namespace) -> Reach:
    selection = shlex.split(options.pytest)
    tree = tree_sha256() + "".join(selection)
    known = reach.load(None if options.stale else tree)
    if known is None:
        _say("running all tests, to see that they pass and what they reach")
        with scratch() as copy:
            known = reach.measure(
                copy, faults, tree=tree, workers=options.jobs, selection=selection
            )
        reach.keep(known)
    for test in sorted(known.failed):
        _say(f"fails without a fault, and judges none: {test}")
    return known


def _tried(faults: Sequence[Fault], known: Reach, *, jobs: int) -> Iterator[Outcome]:
    free: SimpleQueue[Scratch] = SimpleQueue()

    def attempt(fault: Fault) -> Outcome:
        copy = free.get()
        try:
            return try_fault(copy, fault, known.in_order(fault))
        finally:
            free.put(copy)

    with ExitStack() as stack:
        for _ in range(jobs):
            free.put(stack.enter_context(scratch()))
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        yield from pool.map(attempt, faults)


def _tell(outcomes: Iterable[Outcome]) -> list[Outcome]:
    told = []
    for outcome in outcomes:
        verdict = f"found by {outcome.killed_by}" if outcome.killed_by else "SURVIVED"
        _say(f"{outcome.fault:38} {outcome.seconds:6.1f} s {outcome.tests:5} tests  {verdict}")
        told.append(outcome)
    return told


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
