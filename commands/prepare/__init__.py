"""`mass prepare`: settings, the plan, one scan's work, what became of each, Prefect's server.

`plan` and `outcomes` compute, `scan_task` is what a worker does, `settings` and `run` are the ends; the flow
that joins them is in flows.py.
"""
