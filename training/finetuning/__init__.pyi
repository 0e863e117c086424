from .config import (
    FinetuneConfig as FinetuneConfig,
    FinetuneRecipe as FinetuneRecipe,
    finetune_recipe as finetune_recipe,
)
from .evaluation import report_document as report_document
from .run import Finetuning as Finetuning, finetune as finetune
from .scans import LabelledScans as LabelledScans
