"""Pictures and pages about stored scans.

Takes:  a scan of a store (`ScanLike`) and its score.
Gives:  HTML pages that need nothing else, and PNG pictures.

`describe_scan` collects what a page of a scan shows, `overview_scan` a line of it; `scan_page` and
`store_page` write the HTML.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
