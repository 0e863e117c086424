"""Access to the files of a store: in a folder on disk, or as objects at a URL.

Takes:  the path or URL of a store (`parse_store_path`), the key of a file in it.
Gives:  its bytes, whole or by range (`folder_of`, `read_file`), and updates of small files that two writers
        at once cannot lose (`update_file`).

In order: addresses (`urls`), requests to an object store (`client`, the only module that knows obstore), a
bounded cache of what was read from there (`cache`), the folder of a scan (`folders`), files that change
(`updates`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
