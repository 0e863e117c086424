from .export_formats import Export as Export, ExportFormat as ExportFormat, begin as begin
from .export_nnunet import LabelNumbers as LabelNumbers, number_structures as number_structures
from .export_scans import (
    ExportLabel as ExportLabel,
    ExportMasks as ExportMasks,
    ExportScan as ExportScan,
    on_original_grid as on_original_grid,
)
from .matching import FoundMasks as FoundMasks, MaskInput as MaskInput, find_masks as find_masks
from .packing import PackedMasks as PackedMasks, pack_masks as pack_masks
from .placing import (
    Axes as Axes,
    GridChoice as GridChoice,
    PlacedMasks as PlacedMasks,
    Target as Target,
)
from .reading import (
    IMPORT_VERSION as IMPORT_VERSION,
    digest_masks as digest_masks,
    read_label_map as read_label_map,
    read_masks as read_masks,
)
