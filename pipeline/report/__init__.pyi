from .overview import ScanReport as ScanReport, describe_scan as describe_scan, overview_scan as overview_scan
from .page import StoreFacts as StoreFacts, scan_page as scan_page, store_page as store_page
