from .config import (
    DEFAULT_RECIPE as DEFAULT_RECIPE,
    ModelConfig as ModelConfig,
    PretrainConfig as PretrainConfig,
    Recipe as Recipe,
    recipe as recipe,
)
from .pairing import (
    MOST_PAIRS as MOST_PAIRS,
    PARTNERS as PARTNERS,
    PairedScans as PairedScans,
    choose_pairs as choose_pairs,
    make_pairs as make_pairs,
    paired_regions as paired_regions,
)
from .run import (
    DryRun as DryRun,
    Pretraining as Pretraining,
    pretrain as pretrain,
    rehearse_pretraining as rehearse_pretraining,
)
