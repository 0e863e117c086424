"""The search for scans: what a folder, a manifest or a file holds.

Takes:  a path, and the rules for DICOM series.
Gives:  a `Discovery`: a `Source` a scan (its files, labels, modality, id), a `SourceFailure` where one cannot
        be read, notes.

`discover` is the door. `source_digest`, `source_stat` and `choices_digest` say whether a source has changed
since it was prepared. Only names and headers are read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
