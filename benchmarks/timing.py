"""The clock of the benchmarks, as the package has it."""

from scanrl.bench.timing import Timing, measure, print_rows

__all__ = ["Timing", "measure", "print_rows"]
