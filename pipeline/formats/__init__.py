"""Image files: their format, their headers, and protection of patients' names.

Takes:  files: NIfTI, NRRD, MetaImage, DICOM, .npz sets.
Gives:  formats, headers, ordered DICOM slices with their grid; errors that name the file.

`identify` checks the first bytes and the header of a file before an image library opens it. `split_series`
and `order_slices` turn DICOM headers into regular volumes under `SeriesRules`. `Scrubber` and `Identity` keep
patients' names out of ids and messages. Voxels are read by `pipeline.ingest`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
