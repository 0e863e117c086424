"""Training samples from a store: two views of a scan and some of its masks, in batches, with augmentation.

Takes:  a store of `mass prepare`, and `DataConfig`.
Gives:  a `Batch`: two images (B, 1, Z, Y, X) and the masks of each (B, K, Z, Y, X).

`make_loader` returns a loader whose batches depend on the seed and the sample number only, with any number of
worker processes. `augment` augments both views. `windows` computes windows over a scan, `whole_scans`
resamples a whole scan to one window, `boxes` draws the positions of crops.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
