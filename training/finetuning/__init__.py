"""Fine-tuning on labelled scans: trains tokens for each structure and, optionally, the network's weights.

Takes:  a checkpoint, a store with labels, and `FinetuneConfig`.
Gives:  a `Finetuning`: a run folder that `load_finetuned` opens, and a report on the held-out scans.

`finetune` is the main function.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
