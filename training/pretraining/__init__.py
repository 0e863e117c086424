"""Pretraining on mask proposals: every mask is an in-context segmentation task.

Takes:  a store, a run folder, and `PretrainConfig` (`recipe` has ready ones).
Gives:  a `Pretraining`: weights, model card, metrics, pictures in the run folder.

`pretrain` is the main function.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
