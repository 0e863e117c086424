"""The trainer, with precision, checkpoints, metrics, several GPUs and resuming after interruptions.

Takes:  a `Task` (network, batches, loss), an `OptimisationConfig` and a `RunConfig`.
Gives:  a run folder: checkpoints, metrics, config.toml, run.json; a `TrainingResult`.

`Trainer` trains a task; a resumed training gives the same weights, bit for bit. `begin_run`, `check_run` and
`locked_run` create, check and lock a run folder. `choose_precision` and `choose_device` select the arithmetic
and the device. Tasks are defined by `pretraining`, `finetuning` and `classification`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
