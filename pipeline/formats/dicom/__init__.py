"""Headers of DICOM files: slices and frames in order, copies, segmentations and structure sets."""
