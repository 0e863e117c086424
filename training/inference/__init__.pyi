from .in_context import (
    InContextNet as InContextNet,
    InferenceConfig as InferenceConfig,
    Prompt as Prompt,
    Reference as Reference,
    Structure as Structure,
    encode_references as encode_references,
    predict as predict,
    predict_labels as predict_labels,
    predict_probabilities as predict_probabilities,
)
from .pictures import Case as Case, draw_cases as draw_cases, write_png as write_png
from .prompted import (
    FINETUNED as FINETUNED,
    Finetuned as Finetuned,
    PromptedIris as PromptedIris,
    TokenTable as TokenTable,
    load_finetuned as load_finetuned,
    token_inference as token_inference,
    token_prompt as token_prompt,
    weights_file as weights_file,
)
from .registration import Carried as Carried, carry as carry, carry_structures as carry_structures
from .segmentation import (
    Found as Found,
    Labels as Labels,
    Segmentation as Segmentation,
    SegmentConfig as SegmentConfig,
    Segmenter as Segmenter,
    inference_for as inference_for,
    segment as segment,
)
