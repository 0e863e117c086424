"""What is no file is never opened, and links lead out of a folder only if somebody asks for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.discovery.folder_listing import walk
from pipeline.discovery.from_path import discover
from pipeline.errors import ScanError, UnreadableFile
from pipeline.formats import SeriesRules
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.reading import read_source
from tests.phantom import phantom, write_dicom

CONFIG = IngestConfig()
RULES: SeriesRules = CONFIG.series_rules


@pytest.fixture(autouse=True)
def _nothing_waits_for_ever() -> Iterator[None]:
    """A test that opens a pipe would hang: then the process ends, and says where it was."""
    import faulthandler

    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    phantom().write(folder / "good.nii.gz")
    return folder


PIPES = ("a.nii.gz", "b.nhdr", "c.dcm", "d.npz", "e", "f.hdr", "g.mgz")


def test_pipes_sockets_and_devices_are_left_out_with_a_note(raw: Path) -> None:
    for name in PIPES[:3]:
        os.mkfifo(raw / name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(raw / "s.nrrd"))
        (raw / "null.mha").symlink_to("/dev/null")
        found = discover(raw, RULES)
    assert [source.scan_id for source in found.sources] == ["good"]
    assert found.failures == ()
    assert {"a.nii.gz left out: a named pipe, not a file", "null.mha left out: a device, not a file"} <= set(
        found.notes
    )
    assert "s.nrrd left out: a socket, not a file" in found.notes


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_a_manifest_is_a_failure_of_its_row(raw: Path, name: str) -> None:
    os.mkfifo(raw / name)
    (raw / "m.csv").write_text(f"id,image\none,{name}\ntwo,good.nii.gz\n")
    found = discover(raw / "m.csv", RULES)
    assert [source.scan_id for source in found.sources] == ["two"]
    (failure,) = found.failures
    assert (failure.scan_id, failure.kind) == (
        "one",
        "UnreadableFile" if name != "d.npz" else "ManifestError",
    )


@pytest.mark.parametrize("column", ["label", "label_names"])
def test_a_pipe_as_a_label_or_its_names_is_a_failure_of_its_row(raw: Path, column: str) -> None:
    os.mkfifo(raw / "pipe")
    phantom().write_labels(raw / "l.nii.gz")
    label = "pipe" if column == "label" else "l.nii.gz"
    names = "pipe" if column == "label_names" else ""
    (raw / "m.csv").write_text(f"id,image,label,label_names\none,good.nii.gz,{label},{names}\n")
    (failure,) = discover(raw / "m.csv", RULES).failures
    assert "a named pipe is in its place" in failure.reason


def test_a_pipe_as_the_manifest_or_as_the_only_file_waits_for_nothing(raw: Path) -> None:
    os.mkfifo(raw / "m.csv")
    with pytest.raises(UnreadableFile, match="the manifest must be a file, a named pipe"):
        discover(raw / "m.csv", RULES)
    os.mkfifo(raw / "x.nii")
    found = discover(raw / "x.nii", RULES)
    assert (found.sources, found.failures) == ((), ())
    assert "x.nii left out: a named pipe, not a file" in found.notes


def test_a_file_that_became_a_pipe_after_the_search_is_a_failure(raw: Path) -> None:
    (source,) = discover(raw, RULES).sources
    (raw / "good.nii.gz").unlink()
    os.mkfifo(raw / "good.nii.gz")
    with pytest.raises(UnreadableFile, match="a named pipe is in its place"):
        read_source(source, CONFIG)


# --- links


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    phantom(seed=1).write(tmp_path / "elsewhere" / "other.nii.gz")
    write_dicom(tmp_path / "elsewhere" / "series", phantom())
    return tmp_path / "elsewhere"


def test_a_link_to_a_file_elsewhere_is_followed(raw: Path, elsewhere: Path) -> None:
    (raw / "link.nii.gz").symlink_to(elsewhere / "other.nii.gz")
    assert [source.scan_id for source in discover(raw, RULES).sources] == ["good", "link"]


def test_a_link_to_a_folder_elsewhere_is_followed_only_if_asked_for(raw: Path, elsewhere: Path) -> None:
    (raw / "more").symlink_to(elsewhere)
    found = discover(raw, RULES)
    assert [source.scan_id for source in found.sources] == ["good"]
    assert "links to folders elsewhere left out (--follow-links follows them): more" in found.notes
    followed = discover(raw, RULES, follow_links=True)
    assert [source.scan_id for source in followed.sources] == ["good", "more_other", "more_series"]


def test_a_link_to_a_folder_inside_is_followed_once(raw: Path) -> None:
    phantom(seed=2).write(raw / "a" / "x.nii.gz")
    (raw / "b").symlink_to(raw / "a")
    assert len(walk(raw).volumes) == 2
    assert walk(raw).links_out == ()


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_in_a_circle_come_to_an_end(raw: Path, tmp_path: Path, follow_links: bool) -> None:
    (raw / "again").symlink_to(raw)
    (raw / "up").symlink_to(tmp_path)
    (raw / "self").symlink_to("self")
    (raw / "self.nii.gz").symlink_to("self.nii.gz")
    tree = walk(raw, follow_links=follow_links)
    assert tree.volumes == (Path("good.nii.gz"), Path("self.nii.gz"))
    (failed,) = (source for source in discover(raw, RULES).sources if source.scan_id == "self")
    with pytest.raises(UnreadableFile):
        read_source(failed, CONFIG)


def test_a_folder_that_is_itself_a_link_is_searched(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(raw)
    phantom().write(raw / "sub" / "x.nii.gz")
    (raw / "again").symlink_to(raw / "sub")
    assert len(walk(tmp_path / "link").volumes) == 2


# --- data files


@pytest.mark.parametrize(("suffix", "field"), [(".mhd", "ElementDataFile = {}"), (".nhdr", "data file: {}")])
@pytest.mark.parametrize(
    ("name", "what"),
    [("{folder}/secret.raw", "is an absolute path"), ("../secret.raw", "leads out of the folder")],
)
def test_a_data_file_outside_of_the_headers_folder_is_refused_and_not_opened(
    tmp_path: Path, raw: Path, suffix: str, field: str, name: str, what: str
) -> None:
    scan = phantom()
    path = scan.write(raw / f"x{suffix}")
    (data,) = [other for other in raw.iterdir() if other.name.startswith("x.") and other != path]
    data.rename(tmp_path / "secret.raw")
    text = path.read_text()
    (line,) = [one for one in text.splitlines() if data.name in one]
    path.write_text(text.replace(line, field.format(name.format(folder=tmp_path))))
    (raw / "good.nii.gz").unlink()
    (source,) = discover(raw, RULES).sources
    assert source.files == (path,)
    with pytest.raises(ScanError, match="must lie in its header's own folder or below it") as caught:
        read_source(source, CONFIG)
    assert what in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_data_file_below_the_headers_folder_is_read(raw: Path, suffix: str) -> None:
    scan = phantom()
    path = scan.write(raw / f"x{suffix}")
    (data,) = [other for other in raw.iterdir() if other.name.startswith("x.") and other != path]
    (raw / "below").mkdir()
    data.rename(raw / "below" / data.name)
    path.write_text(path.read_text().replace(data.name, f"below/{data.name}"))
    (source,) = (source for source in discover(raw, RULES).sources if source.scan_id == "x")
    assert source.files == (path, raw / "below" / data.name)
    assert (read_source(source, CONFIG).image == scan.image).all()


def test_a_list_of_data_files_may_not_lead_elsewhere(raw: Path) -> None:
    scan = phantom()
    z, y, x = scan.image.shape
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {x} {y} {z}\nspacings: 1 1 1\nencoding: raw\n"
    (raw / "x.nhdr").write_text(header + "endian: little\ndata file: LIST\n/etc/hostname\n")
    (raw / "y.nhdr").write_text(header + "endian: little\ndata file: ../s%02d.raw 1 9 1\n")
    for source in discover(raw, RULES).sources:
        if source.scan_id != "good":
            with pytest.raises(UnreadableFile, match="must lie in its header's own folder"):
                read_source(source, CONFIG)


def test_the_data_file_of_a_pair_is_not_counted_as_left_out(raw: Path) -> None:
    import nibabel

    nibabel.Nifti1Pair(phantom().image.T, None).to_filename(raw / "pair.img")
    (raw / "alone.img").write_bytes(b"x")
    assert walk(raw).other == ((".img", 1),)
    assert Path("pair.hdr") in walk(raw).volumes
