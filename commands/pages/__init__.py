"""Pages made with `pipeline.report` and `training`: of a run, an evaluation, work in progress."""
