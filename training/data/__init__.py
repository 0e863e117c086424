"""Samples of a store: two views of a scan and some of its masks, augmented, in batches.

Takes:  a store of `mass prepare`, and `DataConfig`.
Gives:  a `Batch`: two images (B, 1, Z, Y, X) and the masks of each (B, K, Z, Y, X).

`make_loader` yields batches from worker processes, the same for the same seed and step. `augment` changes the
views. Windows over a scan, whole scans stretched over one window, and boxes are cut by the functions of
`windows`, `whole_scans` and `boxes`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
