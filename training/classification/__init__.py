"""Classification of whole scans, with a frozen encoder or by training the whole encoder.

Takes:  weights, a store, a table of classes, and `ClassifyConfig`.
Gives:  a `Classification`: heads, scores with intervals, predictions.

`classify` is the main function. `encode_scan` returns the features of one scan; `load_classifier` loads a
trained classifier.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
