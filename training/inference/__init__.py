"""Segmentation of new scans, in context (from references with masks) or with a fine-tuned network.

Takes:  a network, reference scans with labels (or learned tokens), target scans.
Gives:  probabilities and labels on each target's own grid.

`Segmenter` and `segment` do all steps for raw scans. `encode_references` makes a `Prompt`; `predict` and
`predict_labels` use it on arrays. `load_finetuned` loads a fine-tuned network. `carry_structures` segments by
registration of the references, without a network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
