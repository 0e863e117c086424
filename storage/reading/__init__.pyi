from .index import (
    Commit as Commit,
    Index as Index,
    IndexEntry as IndexEntry,
    IndexTail as IndexTail,
    append_entry as append_entry,
    dump_index as dump_index,
    parse_commit as parse_commit,
    read_sound_index as read_sound_index,
    with_address as with_address,
    write_index as write_index,
)
from .object_index import (
    REMOVED as REMOVED,
    Change as Change,
    ObjectIndex as ObjectIndex,
    find_entry as find_entry,
    list_marks as list_marks,
    put_mark as put_mark,
    read_index as read_index,
    read_object_index as read_object_index,
    read_pointer as read_pointer,
)
from .salvage import (
    undamaged_imports as undamaged_imports,
)
from .scans import (
    Crop as Crop,
    Scan as Scan,
)
from .shards import (
    single_threaded_blosc as single_threaded_blosc,
)
from .sizes import (
    scan_bytes as scan_bytes,
    stored_bytes as stored_bytes,
)
from .stores import (
    Store as Store,
    StoreInfo as StoreInfo,
    create_store as create_store,
    open_store as open_store,
)
