"""Check that functions are short, but for those that are listed here with a reason.

A function counts from its `def` to its last line, docstring included. What is listed must be
longer than that: the list shrinks with the functions.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
MOST_LINES: Final = 40
CHECKED: Final = (
    *("aggregators", "benchmarks", "cli", "client", "monitoring", "privacy", "protos", "security"),
    *("server", "simulation", "tools", "updates"),
)
GENERATED: Final = "protos/fedagg/"

CONTRACT: Final = "what it takes, refuses and guarantees fills the lines; its code is within them"
COMPILED: Final = "one compiled loop: a call in between costs time, or is not inlined"
OPTIONS: Final = "its signature is the command's help: one option after the other"
TABLE: Final = "a table: one entry after the other, no decisions"
LIFE: Final = "what it starts has to end in the opposite order: one block within the other"

# Reason -> path -> functions.
EXCEPTIONS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    CONTRACT: {
        "aggregators/byzantine.py": ("aggregate",),
        "aggregators/dp.py": ("aggregate",),
        "aggregators/integrated.py": ("step",),
        "aggregators/preaggregations/bucketing.py": ("bucketing",),
        "aggregators/rules/aegis.py": ("aegis",),
        "aggregators/rules/agmami.py": ("agmami",),
        "aggregators/rules/auto_geometric_median.py": ("auto_geometric_median",),
        "aggregators/rules/bulyan.py": ("bulyan",),
        "aggregators/rules/centered_clipping.py": ("centered_clipping",),
        "aggregators/rules/dnc.py": ("dnc",),
        "aggregators/rules/geometric_median.py": ("geometric_median",),
        "aggregators/rules/hybrid.py": ("hybrid",),
        "aggregators/rules/multi_krum.py": ("multi_krum",),
        "aggregators/rules/mutual_information.py": ("pairwise_information",),
        "aggregators/secure.py": ("__init__",),
        "aggregators/server_optimizer.py": ("step",),
        "aggregators/shared_selection.py": ("select",),
        "privacy/calibration.py": ("noise_multiplier",),
        "privacy/discrete_gaussian.py": ("discrete_gaussian",),
        "security/secret_sharing/fixed_point.py": ("encode",),
        "security/secret_sharing/seeded.py": ("share_chunk",),
        "security/shared_round/opening/openings.py": ("compute_openings",),
        "security/shared_round/opening/verdicts.py": ("judge", "judge_blame"),
        "security/shared_round/update/pieces.py": ("open_frame",),
        "server/round/selection.py": ("select",),
        "server/task/preparation.py": ("prepare_task",),
        "simulation/data/partition.py": ("dirichlet",),
        "updates/coordinate_maps.py": ("announced_indices",),
        "updates/index_coding.py": ("decode_indices",),
    },
    COMPILED: {
        "aggregators/kernels/cell_products.py": ("_multiply_stage", "gram_of_cells"),
        "aggregators/kernels/mixing.py": ("_mix_rows",),
        "aggregators/kernels/order_statistics.py": ("order_statistic",),
        "aggregators/kernels/sorting_network.py": ("_sort_rows",),
        "aggregators/kernels/weighted_median.py": ("weighted_median",),
        "aggregators/kernels/weighted_sum.py": ("_adder", "weighted_sum"),
    },
    OPTIONS: {
        "cli/admin/privacy.py": ("plan_privacy",),
        "cli/demo/command.py": ("demo",),
        "cli/device/command.py": ("device",),
        "cli/holder/command.py": ("rehearsal",),
        "cli/serve/command.py": ("serve",),
    },
    TABLE: {"server/holder/metrics.py": ("declare",)},
    LIFE: {"cli/demo/run.py": ("_run", "_serve")},
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def problems(sources: Mapping[str, str]) -> list[str]:
    """Name long functions that are not listed, and listed ones that are not long.

    Args:
        sources: path -> text of every module.

    Returns:
        One line for a person for each, by path.
    """
    listed = {
        (path, name): reason
        for reason, paths in EXCEPTIONS.items()
        for path, names in paths.items()
        for name in names
    }
    found: dict[tuple[str, str], str] = {}
    for path, text in sources.items():
        for function in _long_functions(text):
            lines, reason = _lines(function), listed.get((path, function.name))
            found[path, function.name] = ""
            if reason is None:
                found[path, function.name] = f"has {lines} lines, more than {MOST_LINES}"
            elif reason == CONTRACT and lines - _docstring_lines(function) > MOST_LINES:
                found[path, function.name] = f"has more than {MOST_LINES} lines of code"
    stale = {function: "is listed, and short" for function in listed if function not in found}
    said = sorted({**found, **stale}.items())
    return [f"{path}: {name} {problem}" for (path, name), problem in said if problem]


def _long_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _lines(node) > MOST_LINES:
            yield node


def _lines(node: Function | ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _docstring_lines(function: Function) -> int:
    return _lines(function.body[0]) if ast.get_docstring(function) else 0


def _modules() -> Iterator[tuple[str, str]]:
    for folder in CHECKED:
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(GENERATED):
                yield name, path.read_text()


def main() -> int:
    """Print what is wrong; return 1 where something is."""
    said = problems(dict(_modules()))
    sys.stdout.writelines(f"{line}\n" for line in said)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
