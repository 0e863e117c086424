from .index import (
    Commit as Commit,
    Index as Index,
    IndexEntry as IndexEntry,
    IndexTail as IndexTail,
    append_entry as append_entry,
    parse_commit as parse_commit,
    read_index as read_index,
    read_sound_index as read_sound_index,
    write_index as write_index,
)
from .scans import (
    Crop as Crop,
    Scan as Scan,
)
from .shards import (
    single_threaded_blosc as single_threaded_blosc,
)
from .stores import (
    Store as Store,
    StoreInfo as StoreInfo,
    create_store as create_store,
    open_store as open_store,
)
