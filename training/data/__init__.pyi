from .augmentation import (
    AugmentationConfig as AugmentationConfig,
    ViewAugmentation as ViewAugmentation,
    Views as Views,
    apply_drawn as apply_drawn,
    augment as augment,
    draw as draw,
    strong as strong,
)
from .batches import Batch as Batch, Cuts as Cuts
from .boxes import Box as Box, Triple as Triple, whole as whole
from .fine_views import fine_views as fine_views, jittered as jittered
from .loader import (
    BatchReader as BatchReader,
    SampleLoader as SampleLoader,
    Share as Share,
    make_loader as make_loader,
    stack as stack,
)
from .region_pairs import (
    LEAST_REGIONS as LEAST_REGIONS,
    PairTable as PairTable,
    RegionPairs as RegionPairs,
    file_name as file_name,
    read_pair_table as read_pair_table,
    read_pairs as read_pairs,
    write_pairs as write_pairs,
)
from .sample_reader import KnownScans as KnownScans, opened_store as opened_store
from .sampling import (
    MAX_MASKS as MAX_MASKS,
    DataConfig as DataConfig,
    ScanChoice as ScanChoice,
    ScanSplit as ScanSplit,
    cases_in_turn as cases_in_turn,
    generator_of as generator_of,
    make_choice as make_choice,
    of_other_cases as of_other_cases,
    split_scans as split_scans,
)
from .view_pairs import cut_out as cut_out
from .whole_scans import (
    ResampledCut as ResampledCut,
    ScanView as ScanView,
    cut_around as cut_around,
    draw_scan_views as draw_scan_views,
    from_window as from_window,
    labels_to_window as labels_to_window,
    level_window as level_window,
    to_window as to_window,
    visible_box as visible_box,
    whole_view as whole_view,
    window_for as window_for,
)
from .windows import (
    STRIDE_VOXELS as STRIDE_VOXELS,
    Size as Size,
    Slices as Slices,
    box_of_mask as box_of_mask,
    boxes_over as boxes_over,
    fit_window as fit_window,
    hull_of as hull_of,
    join_boxes as join_boxes,
    take as take,
    take_image as take_image,
    window_boxes as window_boxes,
    window_weights as window_weights,
    windows_at_once as windows_at_once,
)
from .words import unpack_words as unpack_words
