"""Grids of voxels in the patient, and resampling of images between them.

Takes:  an array (z, y, x) with its `Grid`: shape, voxel size, origin, direction.
Gives:  the array turned to RAS, cropped or resampled, with its new grid.

A `Grid` holds the geometry in a file's header. `turn_to_ras`, `crop_grid` and `resampled_grid` make new
grids, `resample_image` and `resample_labels` resample voxels to them; `body_mask` and `body_box` find the
body or the foreground.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
