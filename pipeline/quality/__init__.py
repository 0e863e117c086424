"""How good proposals are: the best overlap of each labelled structure, beside supervoxels of SLIC.

Takes:  a scan of a store (anything that looks like `ScanLike`), and `ScoreConfig`.
Gives:  a `ScanScore` a scan, and tables over scans by `summarize`.

`score_scan` is the door. `select`, `proposal_mask` and `proposals_at` turn intervals of atoms into masks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
