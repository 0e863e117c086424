"""Pages that bring `pipeline.report` and `training` together: of a run, an evaluation, work in progress."""
