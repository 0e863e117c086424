"""Pictures and HTML pages of stored scans.

Takes:  a scan of a store (`ScanLike`) and its score.
Gives:  self-contained HTML pages, and PNG pictures.

`describe_scan` collects the contents of a scan's page, `overview_scan` those of its row in a table;
`scan_page` and `store_page` write the HTML.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
