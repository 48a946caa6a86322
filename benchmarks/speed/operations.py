"""Why few sequences train no faster: the fast scan's time and its number of operations against B.

    python -m benchmarks.speed.operations [--quick] [--threads 1] [--repeats 9] [--json FILE]

Of the size of configs/memory_s7_view3.yaml with 8 to 64 sequences, forward and backward: ``milliseconds`` (median),
``microseconds_a_sample`` (of B T samples), and ``operations_a_step``, the tensor operations that are not views, by T.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import conditions, laps_in_turns, make_parser, medians, parse, print_row, write
from benchmarks.speed.forms import Form, Size, make_forms
from benchmarks.speed.scan import train

BATCHES = (8, 16, 32, 64)
COLUMNS = ["B", "milliseconds", "microseconds_a_sample", "operations_a_step"]


class Count(TorchDispatchMode):
    """Counts operations that are not views of their input."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.operations: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts it."""
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(form: Form) -> int:
    """Of forward and backward."""
    count = Count()
    with count:
        train(form)
    return count.operations


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and, if asked to, writes."""
    parser = make_parser(__doc__, repeats=9)
    parser.add_argument("--threads", type=int, default=1, help="that torch uses (default: 1)")
    options = parse(parser, arguments)
    torch.set_num_threads(options.threads)
    batches = BATCHES[:2] if options.quick else BATCHES
    sizes = {str(batch): Size(64, 2, 4, 32, 32, batch) for batch in batches}
    forms = {name: make_forms(size)["fast"] for name, size in sizes.items()}
    laps = laps_in_turns({name: partial(train, form) for name, form in forms.items()}, options.repeats)
    rows = []
    print(*COLUMNS, sep="\t")
    for name, seconds in medians(laps).items():
        size = sizes[name]
        rows.append(
            size._asdict()
            | {"milliseconds": 1e3 * seconds, "microseconds_a_sample": 1e6 * seconds / (size.B * size.T)}
            | {"operations_a_step": operations(forms[name]) / size.T, "seconds_and_cpu_seconds": laps[name]}
        )
        print_row(rows[-1], COLUMNS)
    write(options.json, "operations", conditions(options.threads) | {"rows": rows})


if __name__ == "__main__":
    main()
