from .config import (
    IDLE_SETTINGS as IDLE_SETTINGS,
    INGEST_VERSION as INGEST_VERSION,
    LATER_SETTINGS as LATER_SETTINGS,
    REFUSALS_VERSION as REFUSALS_VERSION,
    IngestConfig as IngestConfig,
)
from .dicom.labels import read_dicom_label as read_dicom_label
from .image_files import read_file as read_file
from .loading import (
    LoadedScan as LoadedScan,
    find_one as find_one,
    find_targets as find_targets,
    ingest_config as ingest_config,
    load_source as load_source,
    read_own_labels as read_own_labels,
    read_scan as read_scan,
)
from .reading import (
    RawScan as RawScan,
    ScanHeader as ScanHeader,
    read_scan_header as read_scan_header,
    read_source as read_source,
)
from .standard_scan import StandardScan as StandardScan, standardize as standardize
from .writeback import (
    probability_to_source_grid as probability_to_source_grid,
    to_source_grid as to_source_grid,
    write_image as write_image,
)
