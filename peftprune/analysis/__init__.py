"""Analyses of a stored study, as frames. The statistics are those of `peftprune.stats`.

Arguments have the same meaning everywhere: `study` is a stored study, `runs` its `arm_rows`, `table` its `method_rows`,
and `baseline` the label of the method that the others are compared with.
"""
