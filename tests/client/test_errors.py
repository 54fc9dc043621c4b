"""The error tree, and the table from reasons to classes."""

import inspect
import itertools

from client import errors
from client.errors import ERROR_CLASSES, ErrorReason, FedaggError, RefusedError
from protos.fedagg.v1 import errors_pb2
from tests.looped import looped


def test_reasons_are_those_of_the_protocol() -> None:
    assert {reason.name: reason.value for reason in ErrorReason} == dict(
        errors_pb2.ErrorReason.items()
    )


def test_every_reason_has_a_class() -> None:
    assert ERROR_CLASSES.keys() == set(ErrorReason)


def test_every_refusal_class_stands_in_the_table() -> None:
    assert set(ERROR_CLASSES.values()) == set(_below(RefusedError)) - {RefusedError}


# The numbers of errors.proto come in blocks of ten, one gRPC status for each.
@looped(
    "block, root",
    [
        (2, errors.NotFoundError),
        (3, errors.PreconditionError),
        (4, errors.ConflictError),
        (5, errors.AuthenticationError),
        (6, errors.ServiceUnavailableError),
        (7, errors.ServerInternalError),
    ],
)
def test_a_block_of_reasons_shares_a_family(block: int, root: type[RefusedError]) -> None:
    members = [reason for reason in ErrorReason if reason.value // 10 == block]
    assert members
    assert all(issubclass(ERROR_CLASSES[reason], root) for reason in members)


def test_only_the_back_off_block_is_retryable() -> None:
    retryable = {reason for reason, error in ERROR_CLASSES.items() if error.retryable}
    assert retryable == {reason for reason in ErrorReason if reason.value // 10 == 6}


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = [
        line
        for line in inspect.cleandoc(errors.__doc__ or "").splitlines()
        if "Error " in f"{line} "
    ]
    names = [line.strip("│├└─ ").split()[0] for line in drawn if "─" in line]
    assert sorted(names) == sorted(
        cls.__name__ for cls in _below(FedaggError) if cls is not FedaggError
    )


def _below(root: type[FedaggError]) -> list[type[FedaggError]]:
    children = [_below(child) for child in root.__subclasses__()]
    return [root, *itertools.chain.from_iterable(children)]
