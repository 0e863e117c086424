from .committing import (
    commit_scan as commit_scan,
    finish as finish,
    remove_scan as remove_scan,
    sweep as sweep,
)
from .errors import (
    CorruptScan as CorruptScan,
    CorruptStore as CorruptStore,
    FormatVersionError as FormatVersionError,
    InvalidRecord as InvalidRecord,
    InvalidSelection as InvalidSelection,
    ScanExists as ScanExists,
    ScanNotFound as ScanNotFound,
    StorageError as StorageError,
    StoreExists as StoreExists,
    StoreFull as StoreFull,
    StoreNotFound as StoreNotFound,
)
from .imports import (
    OWN as OWN,
    ImportedMasks as ImportedMasks,
    about_imports as about_imports,
    check_source_name as check_source_name,
    import_digest as import_digest,
    imported_sources as imported_sources,
    imports_of as imports_of,
    own_digests as own_digests,
    own_record as own_record,
    with_imports as with_imports,
)
from .index import IndexEntry as IndexEntry
from .layout import (
    FORMAT_VERSION as FORMAT_VERSION,
    PROPOSAL_COLUMNS as PROPOSAL_COLUMNS,
    digest_of as digest_of,
)
from .ledger import (
    LedgerEntry as LedgerEntry,
    LedgerFile as LedgerFile,
    read_ledger as read_ledger,
    write_ledger as write_ledger,
)
from .levels import Level as Level
from .lifting import lift_scan as lift_scan, scans_to_lift as scans_to_lift
from .records import (
    Intensity as Intensity,
    LabelVolume as LabelVolume,
    Proposals as Proposals,
    ScanRecord as ScanRecord,
)
from .regions import Region as Region
from .scans import Crop as Crop, Scan as Scan
from .stores import (
    Store as Store,
    StoreInfo as StoreInfo,
    create_store as create_store,
    open_store as open_store,
)
from .verifying import Problem as Problem, verify as verify, verify_scan as verify_scan
