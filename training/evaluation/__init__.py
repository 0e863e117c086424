"""Evaluation of segmentations on the labelled scans of a store: Dice and surface distances.

Takes:  a network, a store with labels, and `EvaluationConfig`.
Gives:  an `Evaluation`: one score per target and structure, means with intervals, tables.

`evaluate_in_context` is the main function.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
