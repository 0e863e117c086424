from .intervals import (
    coverage as coverage,
    num_atoms as num_atoms,
    proposal_mask as proposal_mask,
    proposals_at as proposals_at,
    select as select,
)
from .overlap import interval_overlap as interval_overlap
from .score_tables import (
    StoreScore as StoreScore,
    summarize as summarize,
    to_csv as to_csv,
    to_json as to_json,
    to_markdown as to_markdown,
)
from .scoring import (
    SIZE_CLASS_NAMES as SIZE_CLASS_NAMES,
    SIZE_CLASSES_MM3 as SIZE_CLASSES_MM3,
    ScanScore as ScanScore,
    ScoreConfig as ScoreConfig,
    StructureScore as StructureScore,
    score_scan as score_scan,
)
from .stored_scan import (
    OWN as OWN,
    SOURCE as SOURCE,
    VOXELS as VOXELS,
    X0 as X0,
    X1 as X1,
    Z0 as Z0,
    Z1 as Z1,
    IntArray as IntArray,
    LabelLike as LabelLike,
    Rows as Rows,
    ScanLike as ScanLike,
    imported_names as imported_names,
    rows_by_origin as rows_by_origin,
)
