from .pictures import Case as Case, draw_cases as draw_cases, write_png as write_png
from .prediction import (
    predict as predict,
    predict_labels as predict_labels,
    predict_probabilities as predict_probabilities,
)
from .prompted import (
    FINETUNED as FINETUNED,
    Finetuned as Finetuned,
    PromptedIris as PromptedIris,
    TokenTable as TokenTable,
    load_finetuned as load_finetuned,
    token_inference as token_inference,
    token_prompt as token_prompt,
)
from .prompts import (
    WHOLE_SCAN_THRESHOLD as WHOLE_SCAN_THRESHOLD,
    InContextNet as InContextNet,
    InferenceConfig as InferenceConfig,
    Prompt as Prompt,
    Reference as Reference,
    Structure as Structure,
    encode_references as encode_references,
    inference_for as inference_for,
)
from .registration import (
    LOW_CONFIDENCE as LOW_CONFIDENCE,
    THRESHOLD as THRESHOLD,
    Carried as Carried,
    Registration as Registration,
    carry as carry,
    carry_structures as carry_structures,
    register_labels as register_labels,
)
from .results import Found as Found, Labels as Labels, Segmentation as Segmentation
from .segmentation import (
    SegmentConfig as SegmentConfig,
    Segmenter as Segmenter,
    segment as segment,
)
