"""Reading of a single-file image: the library that reads it, by the format of its bytes.

*Reads*: NIfTI, Analyze 7.5, MGH, NRRD and MetaImage files. *Writes*: `FileImage`. The format's row of
`IMAGE_FORMATS` says which library reads it: SimpleITK (`itk_files`), or nibabel (`nibabel_files`). A NIfTI-1
file that SimpleITK refuses for its orientation, or whose NaN it would turn into 0, is read by nibabel too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ScanError
from pipeline.formats import check_readable, identify, os_error
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.image_checks import FileImage, damaged
from pipeline.ingest.itk_files import NotOrthonormal, header_with_itk, read_with_itk
from pipeline.ingest.nibabel_files import header_with_nibabel, read_with_nibabel


def read_file(files: Sequence[Path], config: IngestConfig, *, frame: int | None, shown: str) -> FileImage:
    """Return the voxels of a single-file image on its own grid.

    Args:
        files: The file; for a detached header the data file too.
        config: Limits of size and voxel size.
        frame: Index of the frame to take of a 4D file, from 0; None if none is chosen.
        shown: Name of the file in error messages.

    Raises:
        ScanError: The file is not a usable image; the class is the kind of cause.
    """
    for path in files:
        check_readable(
            path, shown=shown, what="file" if path == files[0] else "data file named by the header"
        )
    try:
        image_format, checked = identify(files[0], shown=shown, frame=frame)
        if image_format.library == "nibabel":
            return read_with_nibabel(files[0], image_format.reader, image_format.note, config, frame, shown)
        exact = image_format.exact_reader
        if not (exact and checked.num_not_finite):
            try:
                return read_with_itk(files[0], image_format.reader, config, frame, shown)
            except NotOrthonormal:
                if not exact:
                    raise
        return read_with_nibabel(files[0], exact, image_format.note, config, frame, shown)
    except ScanError:
        raise
    except OSError as error:
        raise os_error(error, shown=shown) from None


def read_file_header(
    files: Sequence[Path], config: IngestConfig, *, frame: int | None, shown: str
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return shape (x, y, z) and voxel size (x, y, z) in mm of one frame, from the header of an image file.

    Zipped streams are not read to their end. Arguments as of `read_file`.

    Raises:
        ScanError: The header shows that the file is no usable image.
    """
    for path in files:
        check_readable(path, shown=shown, what="file")
    try:
        found = header_with_itk(files[0], config, frame, shown)
        if found is None:  # another library's format, an orientation that it refuses, or no image at all
            found = header_with_nibabel(files[0], config, frame, shown)
        if found is None:
            identify(files[0], shown=shown, frame=frame)  # says what is wrong with it
            raise damaged(shown)
    except OSError as error:
        if isinstance(error, ScanError):
            raise
        raise os_error(error, shown=shown) from None
    return found
