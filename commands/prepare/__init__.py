"""`mass prepare`: settings, the plan, the task of a scan, outcomes, Prefect's server.

`plan` and `outcomes` compute. `scan_task` runs in a worker. `settings` and `work` are what is done before and
after. The flow that joins them is in flows.py.
"""
