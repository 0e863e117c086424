"""Reading of DICOM: pixels in real units, PET in SUV, segmentations and structure sets as masks."""
