from .checkpoints import BEST as BEST, read_checkpoint as read_checkpoint
from .distributed import (
    DeviceName as DeviceName,
    Ranks as Ranks,
    choose_device as choose_device,
    joined_processes as joined_processes,
    use_threads as use_threads,
)
from .losses import LossTerms as LossTerms, segmentation_loss as segmentation_loss
from .monitoring import (
    METRICS as METRICS,
    Callbacks as Callbacks,
    TrainingProgress as TrainingProgress,
    read_metrics as read_metrics,
)
from .optimisation import OptimisationConfig as OptimisationConfig
from .precision import (
    ChosenPrecision as ChosenPrecision,
    Precision as Precision,
    autocast as autocast,
    choose_precision as choose_precision,
)
from .processes import (
    in_processes as in_processes,
    run_item as run_item,
    worker_pool as worker_pool,
)
from .rehearsal import Rehearsal as Rehearsal, rehearse as rehearse
from .run_folder import (
    CHECKPOINTS as CHECKPOINTS,
    CONFIG as CONFIG,
    PICTURES as PICTURES,
    RECORD as RECORD,
    RunConfig as RunConfig,
    RunRecord as RunRecord,
    begin_run as begin_run,
    check_run as check_run,
    has_begun as has_begun,
    is_run as is_run,
    locked_run as locked_run,
    open_run as open_run,
    scan_digests as scan_digests,
    settle_precision as settle_precision,
    to_toml as to_toml,
)
from .task import Task as Task, TrainingResult as TrainingResult
from .trainer import Trainer as Trainer
