from .binary_headers import colour_error as colour_error, complex_error as complex_error
from .dicom.copies import drop_copies as drop_copies
from .dicom.frames import Frame as Frame, first_item as first_item, in_groups as in_groups
from .dicom.headers import Header as Header, read_header as read_header
from .dicom.label_headers import (
    DicomStructure as DicomStructure,
    LabelHeader as LabelHeader,
    label_kind as label_kind,
    read_label_header as read_label_header,
    source_instances as source_instances,
)
from .dicom.parsing import DAMAGED as DAMAGED, quiet_pydicom as quiet_pydicom
from .dicom.series import (
    SeriesRules as SeriesRules,
    Slices as Slices,
    Stack as Stack,
    order_slices as order_slices,
    split_series as split_series,
)
from .dicom.values import find_floats as find_floats, find_number as find_number, find_text as find_text
from .file_kinds import identify as identify
from .files import (
    DATA_SUFFIXES as DATA_SUFFIXES,
    check_readable as check_readable,
    companions as companions,
    header_of_pair as header_of_pair,
    is_transient as is_transient,
    os_error as os_error,
    pair_of as pair_of,
    printable_path as printable_path,
    refuse_special as refuse_special,
    special_kind as special_kind,
    text_of_path as text_of_path,
)
from .modality_names import NAME_WORDS as NAME_WORDS, Modality as Modality, parse_modality as parse_modality
from .npz_sets import (
    SET_SUFFIX as SET_SUFFIX,
    SetPart as SetPart,
    ids_in as ids_in,
    open_set as open_set,
    read_set_image as read_set_image,
)
from .privacy import Identity as Identity, Scrubber as Scrubber, short_hash as short_hash
from .stalls import hurry_reads as hurry_reads, until_stalled as until_stalled
from .suffixes import (
    DICOM_SUFFIXES as DICOM_SUFFIXES,
    has_dicom_preamble as has_dicom_preamble,
    result_suffix as result_suffix,
    stem_of as stem_of,
    volume_suffix as volume_suffix,
)
