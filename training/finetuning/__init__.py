"""Fine-tuning on labelled scans: tokens for each structure, and the network's weights if wanted.

Takes:  weights or none, a store with labels, and `FinetuneConfig`.
Gives:  a `Finetuning`: a run folder that `load_finetuned` opens, and a report on the scans kept out.

`finetune` is the door.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
