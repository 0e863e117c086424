from .cache import (
    ReadCache as ReadCache,
    check_cache as check_cache,
)
from .client import (
    PART_BYTES as PART_BYTES,
    ObjectClient as ObjectClient,
    ObjectConflictError as ObjectConflictError,
    Stamp as Stamp,
    client_of as client_of,
    close_clients as close_clients,
)
from .folders import (
    Folder as Folder,
    OpenFile as OpenFile,
    ReplacedError as ReplacedError,
    WrongSizeError as WrongSizeError,
    folder_of as folder_of,
)
from .updates import (
    read_file as read_file,
    read_if_there as read_if_there,
    require_conditional_puts as require_conditional_puts,
    update_file as update_file,
    update_object as update_object,
)
from .urls import (
    CacheSettings as CacheSettings,
    StorePath as StorePath,
    StoreUrl as StoreUrl,
    absolute_store_path as absolute_store_path,
    parse_store_path as parse_store_path,
    store_name as store_name,
    with_cache as with_cache,
)
