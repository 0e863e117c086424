from .fingerprint import (
    choices_digest as choices_digest,
    source_digest as source_digest,
    source_stat as source_stat,
)
from .from_path import discover as discover
from .label_names import find_value_names as find_value_names
from .layouts.table import AUTO as AUTO, LAYOUT_NAMES as LAYOUT_NAMES
from .sources import (
    Discovery as Discovery,
    LabelPart as LabelPart,
    LabelSource as LabelSource,
    SetItem as SetItem,
    Source as Source,
    SourceFailure as SourceFailure,
    distinct_ids as distinct_ids,
    id_from_parts as id_from_parts,
)
