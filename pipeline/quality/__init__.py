"""Quality of proposals: the best overlap with each labelled structure, compared with SLIC supervoxels.

Takes:  a scan of a store (any object of the type `ScanLike`), and `ScoreConfig`.
Gives:  one `ScanScore` per scan, and tables over scans by `summarize`.

`score_scan` scores a scan. `select`, `proposal_mask` and `proposals_at` turn intervals of atoms into masks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
