"""Structures in new scans, from references with masks or from a fine-tuned network.

Takes:  a network, reference scans with labels (or learned tokens), target scans.
Gives:  probabilities and labels on each target's own grid.

`Segmenter` and `segment` do all of it for raw scans. `encode_references` makes a `Prompt`, `predict` and
`predict_labels` use it on arrays; `load_finetuned` opens a fine-tuned run; `carry_structures` answers by
registration, without a network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
