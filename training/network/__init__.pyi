from .decoder import Priors as Priors
from .encoder import Encoder as Encoder, Features as Features
from .iris import (
    PUBLISHED_CHANNELS as PUBLISHED_CHANNELS,
    PUBLISHED_NUM_TASKS as PUBLISHED_NUM_TASKS,
    Iris as Iris,
)
from .preparation import (
    PUBLISHED_SPACING_MM as PUBLISHED_SPACING_MM,
    TrainedOn as TrainedOn,
    preparation_warning as preparation_warning,
    recorded_beside as recorded_beside,
)
from .task_encoding import NUM_QUERIES as NUM_QUERIES
from .weights import (
    MODEL_CARD as MODEL_CARD,
    WEIGHTS as WEIGHTS,
    ModelCard as ModelCard,
    WhichWeights as WhichWeights,
    export_weights as export_weights,
    in_fixed_order as in_fixed_order,
    installed_versions as installed_versions,
    load_checkpoint as load_checkpoint,
)
