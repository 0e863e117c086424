"""Training: the Iris network, batches from the store, losses, one trainer, inference and evaluation.

    from training import Iris, load_checkpoint, segment

    net = load_checkpoint("RUN/weights.safetensors")
    result = segment(net, references=[("ref.nii.gz", "mask.nii.gz")], target="scan.nii.gz")
    result.labels                            # (z, y, x) on the target's own grid
    result.save("scan_seg.nii.gz")
    logits = net(target, reference, masks)   # (B,1,Z,Y,X), (B,1,Z,Y,X), (B,K,Z,Y,X) -> (B,K,Z,Y,X)

Names are loaded when first used, so that importing `training` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.augmentation import AugmentationConfig, ViewAugmentation, Views, augment
    from training.batches import Batch
    from training.class_config import ClassifyConfig, classify_config
    from training.classification import Classification, classify
    from training.config import ModelConfig, PretrainConfig, recipe
    from training.embedding import EmbeddingConfig, ScanFeatures, encode_scan
    from training.errors import (
        CheckpointError,
        ConfigError,
        CropError,
        DataError,
        NonFiniteLoss,
        RunError,
        TrainingError,
    )
    from training.evaluation import Evaluation, EvaluationConfig, evaluate_in_context
    from training.finetune_config import FinetuneConfig, finetune_recipe
    from training.finetuned import Finetuned, load_finetuned
    from training.finetuning import Finetuning, finetune
    from training.heads import Classifier, load_classifier
    from training.inference import (
        InferenceConfig,
        Prompt,
        Reference,
        Structure,
        encode_references,
        predict_labels,
        predict_probabilities,
    )
    from training.iris import Iris
    from training.loader import SampleLoader, make_loader
    from training.optimisation import OptimisationConfig
    from training.pictures import Case, draw_cases, write_png
    from training.pretraining import Pretraining, pretrain
    from training.runs import RunConfig
    from training.samples import digest_scans
    from training.sampling import DataConfig, split_scans
    from training.segmentation import Segmentation, SegmentConfig, Segmenter, segment
    from training.tasks import Task, TrainingResult
    from training.trainer import Trainer
    from training.weights import ModelCard, export_weights, load_checkpoint

_HOME = {
    "AugmentationConfig": "augmentation",
    "ViewAugmentation": "augmentation",
    "Views": "augmentation",
    "augment": "augmentation",
    "Batch": "batches",
    "Classification": "classification",
    "classify": "classification",
    "ClassifyConfig": "class_config",
    "classify_config": "class_config",
    "Classifier": "heads",
    "load_classifier": "heads",
    "EmbeddingConfig": "embedding",
    "encode_scan": "embedding",
    "ScanFeatures": "embedding",
    "ModelConfig": "config",
    "PretrainConfig": "config",
    "recipe": "config",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "CropError": "errors",
    "DataError": "errors",
    "NonFiniteLoss": "errors",
    "RunError": "errors",
    "TrainingError": "errors",
    "Evaluation": "evaluation",
    "EvaluationConfig": "evaluation",
    "evaluate_in_context": "evaluation",
    "FinetuneConfig": "finetune_config",
    "finetune_recipe": "finetune_config",
    "Finetuned": "finetuned",
    "load_finetuned": "finetuned",
    "Finetuning": "finetuning",
    "finetune": "finetuning",
    "InferenceConfig": "inference",
    "Prompt": "inference",
    "Reference": "inference",
    "Structure": "inference",
    "encode_references": "inference",
    "predict_labels": "inference",
    "predict_probabilities": "inference",
    "Iris": "iris",
    "SampleLoader": "loader",
    "make_loader": "loader",
    "OptimisationConfig": "optimisation",
    "Case": "pictures",
    "draw_cases": "pictures",
    "write_png": "pictures",
    "Pretraining": "pretraining",
    "pretrain": "pretraining",
    "RunConfig": "runs",
    "digest_scans": "samples",
    "DataConfig": "sampling",
    "split_scans": "sampling",
    "SegmentConfig": "segmentation",
    "Segmentation": "segmentation",
    "Segmenter": "segmentation",
    "segment": "segmentation",
    "Task": "tasks",
    "TrainingResult": "tasks",
    "Trainer": "trainer",
    "ModelCard": "weights",
    "export_weights": "weights",
    "load_checkpoint": "weights",
}

__all__ = [
    "AugmentationConfig",
    "Batch",
    "Case",
    "CheckpointError",
    "Classification",
    "Classifier",
    "ClassifyConfig",
    "ConfigError",
    "CropError",
    "DataConfig",
    "DataError",
    "EmbeddingConfig",
    "Evaluation",
    "EvaluationConfig",
    "FinetuneConfig",
    "Finetuned",
    "Finetuning",
    "InferenceConfig",
    "Iris",
    "ModelCard",
    "ModelConfig",
    "NonFiniteLoss",
    "OptimisationConfig",
    "PretrainConfig",
    "Pretraining",
    "Prompt",
    "Reference",
    "RunConfig",
    "RunError",
    "SampleLoader",
    "ScanFeatures",
    "SegmentConfig",
    "Segmentation",
    "Segmenter",
    "Structure",
    "Task",
    "Trainer",
    "TrainingError",
    "TrainingResult",
    "ViewAugmentation",
    "Views",
    "augment",
    "classify",
    "classify_config",
    "digest_scans",
    "draw_cases",
    "encode_references",
    "encode_scan",
    "evaluate_in_context",
    "export_weights",
    "finetune",
    "finetune_recipe",
    "load_checkpoint",
    "load_classifier",
    "load_finetuned",
    "make_loader",
    "predict_labels",
    "predict_probabilities",
    "pretrain",
    "recipe",
    "segment",
    "split_scans",
    "write_png",
]


def __getattr__(name: str) -> object:
    """Load an exported name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'training' has no attribute {name!r}")
    return getattr(import_module(f"training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Return the exported names."""
    return sorted(__all__)
