from .config import (
    ModelConfig as ModelConfig,
    PretrainConfig as PretrainConfig,
    Recipe as Recipe,
    recipe as recipe,
)
from .run import (
    DryRun as DryRun,
    Pretraining as Pretraining,
    pretrain as pretrain,
    rehearse_pretraining as rehearse_pretraining,
)
