from .charts import line_chart as line_chart
from .html import (
    fact_list as fact_list,
    figure as figure,
    html_page as html_page,
    number_list as number_list,
    table as table,
)
from .outliers import find_unusual as find_unusual
from .overview import (
    Picture as Picture,
    ScanReport as ScanReport,
    describe_scan as describe_scan,
    overview_scan as overview_scan,
    scan_facts as scan_facts,
)
from .packs import (
    LeveledScan as LeveledScan,
    PackFacts as PackFacts,
    Pair as Pair,
    in_8_bits as in_8_bits,
    pack_scan as pack_scan,
    pairs_of as pairs_of,
)
from .rows import (
    ScanRow as ScanRow,
    full_row as full_row,
    index_row as index_row,
    table_row as table_row,
)
from .scan_pages import (
    explorer_page as explorer_page,
    scan_page as scan_page,
    viewer_page as viewer_page,
)
from .store_page import StoreContents as StoreContents, store_page as store_page
from .stored import LeveledLabel as LeveledLabel, at_level as at_level, thinned as thinned
