"""Search for scans in a folder, a manifest or a file. Only names and headers are read.

Takes:  a path, and the rules for DICOM series.
Gives:  a `Discovery`: one `Source` per scan (its files, labels, modality, id), a `Failure` for each
        scan that cannot be read, and notes.

`discover` does the search. `source_digest`, `source_stat` and `choices_digest` show whether a source has
changed since it was prepared.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
