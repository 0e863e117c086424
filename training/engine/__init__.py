"""The trainer: steps, precision, checkpoints, metrics, several GPUs, interruptions.

Takes:  a `Task` (network, batches, loss), an `OptimisationConfig` and a `RunConfig`.
Gives:  a run folder: checkpoints, metrics, config.toml, run.json; a `TrainingResult`.

`Trainer` runs a task and resumes it to the same bits. `begin_run`, `check_run` and `locked_run` keep a run
folder; `choose_precision` and `choose_device` say how and where. What is trained is for the rooms above to
say.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
