"""Rows of `speed`, in order of worth."""

from benchmarks.gpu import kernels, pocket, stages

ROWS = [*stages.FIRST, *pocket.ROWS, *kernels.ROWS, *stages.THEN]
