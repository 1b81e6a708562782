"""Grids of training runs: recipes x tasks x seeds x budgets, each run once, and the table of what they reached.

`spec` says what is to be run, `reading` reads it from YAML, `records` keeps what was run, `attempt` makes one run,
`schedule` all of them; `table` computes the columns `last`, `selected` and `best`, and `layout` writes them as text.
"""
