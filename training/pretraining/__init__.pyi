from .config import (
    ModelConfig as ModelConfig,
    PretrainConfig as PretrainConfig,
    Recipe as Recipe,
    recipe as recipe,
)
from .run import Pretraining as Pretraining, pretrain as pretrain
