from .imported_masks import (
    OWN as OWN,
    ImportedMasks as ImportedMasks,
    about_imports as about_imports,
    check_source_name as check_source_name,
    import_digest as import_digest,
    imported_rows as imported_rows,
    imported_sources as imported_sources,
    imports_of as imports_of,
    own_digests as own_digests,
    own_record as own_record,
    with_imports as with_imports,
)
from .levels import (
    Level as Level,
    Triple as Triple,
    coarse_boxes as coarse_boxes,
    coarse_shape as coarse_shape,
    downsample_image as downsample_image,
    downsample_labels as downsample_labels,
    fine_region as fine_region,
    make_level as make_level,
    plan_levels as plan_levels,
    ratio as ratio,
    steps_to as steps_to,
)
from .orders import (
    Rows as Rows,
    pack_orders as pack_orders,
    unpack_orders as unpack_orders,
)
from .proposal_checks import (
    count_atoms as count_atoms,
)
from .regions import (
    Region as Region,
    parse_region as parse_region,
    region_shape as region_shape,
    touched_chunks as touched_chunks,
)
from .scan_record import (
    Intensity as Intensity,
    Labels as Labels,
    LabelVolume as LabelVolume,
    Proposals as Proposals,
    ScanRecord as ScanRecord,
    plain_json as plain_json,
)
from .words import (
    add_words as add_words,
    build_lookup as build_lookup,
    count_voxels as count_voxels,
    unpack_words as unpack_words,
)
