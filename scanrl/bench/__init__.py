"""Benchmarks: what is timed, against what, and how near it comes to what the machine can do.

`speed` times the short cases and is what `scanrl bench speed` shows; the programs under `benchmarks/` of the source
tree time the long ones out of the same parts. Nothing is timed before its results have been compared.
"""
