"""How well structures are found: Dice and surface distances on labelled scans of a store.

Takes:  a network, a store with labels, and `EvaluationConfig`.
Gives:  an `Evaluation`: a score a target and structure, summaries with intervals, tables.

`evaluate_in_context` is the door.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
