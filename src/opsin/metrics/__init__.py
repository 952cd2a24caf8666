"""Numbers that say how good a model is, how sure we are of them, and whether two models differ (numpy only, no torch).

Import from the module: `classification`, `probability`, `ranking`, `multilabel`, `regression`, `thresholds`, `summary`
(metrics of rows); `intervals`, `paired`, `repeats` (how sure); `warnings` (what could mislead); `names` (the table of
metric names).
"""
