"""Many quick cases within one test: pytest takes longer to start a test than most of them last."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Test: TypeAlias = Callable[..., None]


def looped(
    names: str, cases: Iterable[Any], *, ids: Iterable[str] | Callable[[Any], str] = repr
) -> Callable[[Test], Test]:
    """Run a test for case after case, as `pytest.mark.parametrize` does, but as one test.

    All cases run; those that fail are told with their values. Fixtures are made once for all of
    them, so this is for tests that leave no trace in any.

    Args:
        names: of the arguments, separated by commas.
        cases: a value for each test, or of several arguments a sequence of values.
        ids: what to call the cases, or how to call each value.
    """
    keys = [name.strip() for name in names.split(",")]
    known = [case if len(keys) > 1 else (case,) for case in cases]
    called = [", ".join(map(ids, values)) for values in known] if callable(ids) else list(ids)

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            failures = []
            for name, values in zip(called, known, strict=True):
                try:
                    test(*args, **kwargs, **dict(zip(keys, values, strict=True)))
                except Exception as error:
                    error.add_note(f"in the case {name[:200]}")
                    failures.append(error)
            if len(failures) > 1:
                msg = f"{len(failures)} of {len(known)} cases"
                raise ExceptionGroup(msg, failures)
            if failures:
                raise failures[0]

        signature = inspect.signature(test)
        left = [one for name, one in signature.parameters.items() if name not in keys]
        # What pytest fills in is what is left.
        vars(run)["__signature__"] = signature.replace(parameters=left)
        return run

    return decorate
