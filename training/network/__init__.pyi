from .decoder import Priors as Priors
from .encoder import Encoder as Encoder, Features as Features
from .graphs import (
    export_onnx as export_onnx,
    export_torchscript as export_torchscript,
    features_metadata as features_metadata,
)
from .image_format import ImageFormat as ImageFormat
from .iris import (
    PUBLISHED_CHANNELS as PUBLISHED_CHANNELS,
    PUBLISHED_NUM_TASKS as PUBLISHED_NUM_TASKS,
    Iris as Iris,
    recompute_stages as recompute_stages,
    repeated_blocks as repeated_blocks,
)
from .kernels import mask_sums as mask_sums, use_kernels as use_kernels
from .monai_bundle import (
    LabelledStructure as LabelledStructure,
    WindowInferer as WindowInferer,
    export_features_bundle as export_features_bundle,
    export_segmentation_bundle as export_segmentation_bundle,
    write_features as write_features,
)
from .nnunet import export_nnunet as export_nnunet
from .plain import (
    FinetunedUNet as FinetunedUNet,
    PlainUNet as PlainUNet,
    finetuned_unet as finetuned_unet,
    plain_unet as plain_unet,
)
from .preparation import (
    PUBLISHED_SPACING_MM as PUBLISHED_SPACING_MM,
    TrainedOn as TrainedOn,
    preparation_warning as preparation_warning,
    recorded_beside as recorded_beside,
)
from .sealing import (
    check_archive as check_archive,
    check_seal as check_seal,
    in_fixed_order as in_fixed_order,
    weights_digest as weights_digest,
)
from .task_encoding import NUM_QUERIES as NUM_QUERIES
from .weights import (
    MODEL_CARD as MODEL_CARD,
    SHIPPED as SHIPPED,
    WEIGHTS as WEIGHTS,
    ModelCard as ModelCard,
    WhichWeights as WhichWeights,
    convert_weights as convert_weights,
    export_weights as export_weights,
    installed_versions as installed_versions,
    load_checkpoint as load_checkpoint,
    weights_file as weights_file,
)
