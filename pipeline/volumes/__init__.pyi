from .filling import FilledImage as FilledImage, fill_not_finite as fill_not_finite
from .foreground import (
    background_threshold as background_threshold,
    body_box as body_box,
    body_mask as body_mask,
)
from .grid import (
    Grid as Grid,
    corner_distance_mm as corner_distance_mm,
    nine as nine,
    rigid_grid as rigid_grid,
    triple as triple,
)
from .reorientation import (
    Turn as Turn,
    axis_maps as axis_maps,
    crop_grid as crop_grid,
    resampled_grid as resampled_grid,
    turn_array as turn_array,
    turn_grid as turn_grid,
    turn_to_ras as turn_to_ras,
    turn_towards as turn_towards,
    whole as whole,
)
from .resampling import (
    labels_on_grid as labels_on_grid,
    resample_image as resample_image,
    resample_labels as resample_labels,
)
