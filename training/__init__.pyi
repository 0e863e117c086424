from .classification import (
    Classification as Classification,
    Classifier as Classifier,
    ClassifyConfig as ClassifyConfig,
    EmbeddingConfig as EmbeddingConfig,
    ScanFeatures as ScanFeatures,
    classify as classify,
    classify_config as classify_config,
    encode_scan as encode_scan,
    load_classifier as load_classifier,
)
from .data import (
    AugmentationConfig as AugmentationConfig,
    Batch as Batch,
    DataConfig as DataConfig,
    SampleLoader as SampleLoader,
    ViewAugmentation as ViewAugmentation,
    Views as Views,
    augment as augment,
    make_loader as make_loader,
    split_scans as split_scans,
)
from .engine import (
    OptimisationConfig as OptimisationConfig,
    RunConfig as RunConfig,
    Task as Task,
    Trainer as Trainer,
    TrainingResult as TrainingResult,
)
from .errors import (
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    CropError as CropError,
    DataError as DataError,
    NonFiniteLoss as NonFiniteLoss,
    RunError as RunError,
    TrainingError as TrainingError,
)
from .evaluation import (
    Evaluation as Evaluation,
    EvaluationConfig as EvaluationConfig,
    evaluate_in_context as evaluate_in_context,
)
from .finetuning import (
    FinetuneConfig as FinetuneConfig,
    Finetuning as Finetuning,
    finetune as finetune,
    finetune_recipe as finetune_recipe,
)
from .inference import (
    Case as Case,
    Finetuned as Finetuned,
    InferenceConfig as InferenceConfig,
    Prompt as Prompt,
    Reference as Reference,
    Segmentation as Segmentation,
    SegmentConfig as SegmentConfig,
    Segmenter as Segmenter,
    Structure as Structure,
    draw_cases as draw_cases,
    encode_references as encode_references,
    load_finetuned as load_finetuned,
    predict_labels as predict_labels,
    predict_probabilities as predict_probabilities,
    segment as segment,
    write_png as write_png,
)
from .network import (
    Iris as Iris,
    ModelCard as ModelCard,
    export_weights as export_weights,
    load_checkpoint as load_checkpoint,
)
from .pretraining import (
    ModelConfig as ModelConfig,
    PretrainConfig as PretrainConfig,
    Pretraining as Pretraining,
    pretrain as pretrain,
    recipe as recipe,
)
