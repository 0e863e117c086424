"""Classes of whole scans, from features of the encoder or by training all of it.

Takes:  weights, a store, a table of classes, and `ClassifyConfig`.
Gives:  a `Classification`: heads, scores with intervals, predictions.

`classify` is the door; `encode_scan` gives the features of one scan, `load_classifier` (heads) opens what was
trained.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
