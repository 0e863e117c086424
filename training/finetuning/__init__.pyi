from .carried_labels import read_carried_table as read_carried_table
from .carrying import (
    REFERENCES as REFERENCES,
    TARGETS as TARGETS,
    CarriedScan as CarriedScan,
    CarryPlan as CarryPlan,
    carry_labels as carry_labels,
    plan_carrying as plan_carrying,
)
from .config import (
    FinetuneConfig as FinetuneConfig,
    FinetuneRecipe as FinetuneRecipe,
    finetune_recipe as finetune_recipe,
)
from .evaluation import report_document as report_document
from .run import Finetuning as Finetuning, finetune as finetune
from .scans import FinetuneTaskConfig as FinetuneTaskConfig, LabelledScans as LabelledScans
