import importlib

from security.secret_sharing.arithmetic import backend
from security.secret_sharing.kernels import compiled_kernels
from security.secret_sharing.kernels.choice import COMPILED, Kernels
from security.secret_sharing.warm_up import warm_up


def test_every_loop_is_compiled_afterwards() -> None:
    assert warm_up() == backend() == "numba"
    module = importlib.import_module(COMPILED)
    assert module is compiled_kernels
    loops = [name for name in vars(Kernels) if not name.startswith("_") and name != "NAME"]
    assert len(loops) == 11
    for name in loops:
        assert getattr(module, name).signatures, name
