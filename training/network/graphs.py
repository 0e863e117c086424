"""The encoder as a graph that runs without this package: TorchScript, or ONNX.

*Writes* one file: input `image` float32 (B, 1, Z, Y, X), z-scores, each axis a multiple of 16; five outputs,
deepest first, float32 (B, C, Z/16, Y/16, X/16), ..., (B, C, Z, Y, X). B, Z, Y and X are free. The metadata
are one JSON document: in ONNX the property `mass3d`, in TorchScript the extra file `mass3d.json`.

ONNX needs the packages of the extra `export`; they are imported when used.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from storage import write_atomically
from training.errors import ConfigError
from training.network.encoder import Encoder
from training.network.iris import CROP_MULTIPLE, Iris

METADATA = "mass3d"
OUTPUTS = ("features_16", "features_8", "features_4", "features_2", "features_1")
"""Names of the outputs of the ONNX file: the number is the downsampling factor."""

_ONNX_PACKAGES = ("onnx", "onnxscript")
_OPSET = 20
_LARGEST_BATCH, _LARGEST_SIDE = 4096, 4096
_EXAMPLE = (2, 1, 32, 48, 64)
"""Shape of the image that the graph is recorded with; all sides differ, so that none is mistaken for
another."""


def features_metadata(net: Iris, image_format: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an exported encoder.

    Args:
        net: The network.
        image_format: Preparation of its images, see `ImageFormat.to_json`.
    """
    return {
        "network": "encoder of Iris (mass3d)",
        "channels": list(net.channels),
        "outputs": dict(zip(OUTPUTS, reversed(net.channels), strict=True)),
        "image": dict(image_format),
    }


def export_torchscript(net: Iris, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write the encoder as TorchScript; returns the path.

    Args:
        net: The network, on the CPU, in evaluation mode.
        path: File to write.
        metadata: Plain values, stored as the extra file `mass3d.json`.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit is deprecated in favour of torch.export; C++ and older programs still load its files.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        traced = torch.jit.trace(net.encoder, torch.zeros(_EXAMPLE), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer, _extra_files={f"{METADATA}.json": _as_text(metadata)})
    written = _without_source_lines(buffer.getvalue())
    write_atomically(path, lambda file: file.write(written))
    return path


def export_onnx(net: Iris, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write the encoder as ONNX, opset 20, in one file; returns the path.

    Args:
        net: The network, on the CPU, in evaluation mode.
        path: File to write.
        metadata: Plain values, stored as the property `mass3d`.

    Raises:
        ConfigError: The packages of the extra `export` are not installed.
    """
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format onnx needs {' and '.join(missing)}, which is not installed. Install what it needs: "
            "pip install onnx onnxscript (or mass3d with its extra, [export])"
        )
    program = _onnx_program(net.encoder)
    program.model.metadata_props[METADATA] = _as_text(metadata)
    written = program.model_proto.SerializeToString(deterministic=True)
    write_atomically(path, lambda file: file.write(written))
    return path


def _onnx_program(encoder: Encoder) -> Any:
    """Return the encoder as an ONNXProgram with named, free axes and no trace of where it was made."""
    side = _LARGEST_SIDE // CROP_MULTIPLE
    free = {0: torch.export.Dim("batch", max=_LARGEST_BATCH)}
    for axis, name in enumerate("zyx", start=2):
        free[axis] = CROP_MULTIPLE * torch.export.Dim(f"{name}16", max=side)
    with _quiet_exporter():
        program = torch.onnx.export(
            encoder,
            (torch.zeros(_EXAMPLE),),
            dynamo=True,
            dynamic_shapes={"image": free},
            input_names=["image"],
            output_names=list(OUTPUTS),
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    model: Any = program.model
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # lines of source files, with the paths of this machine
    for value in (*model.graph.inputs, *model.graph.outputs, *_values(model)):
        value.metadata_props.clear()
    for output, factor in zip(model.graph.outputs, (1, 2, 4, 8, 16), strict=True):
        size = [f"{factor}*{name}16" if factor > 1 else f"{name}16" for name in "zyx"]
        output.shape = type(output.shape)(["batch", output.shape[1], *size])
    return program


def _values(model: Any) -> Iterator[Any]:
    """Yield the outputs of every node, and the weights."""
    for node in model.graph.all_nodes():
        yield from node.outputs
    yield from model.graph.initializers.values()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks off the terminal: on torchvision, and on its own use of PyTorch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|copyreg|onnx)")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|copyreg|onnx)")
            yield
    finally:
        logger.setLevel(level)


def _without_source_lines(archive: bytes) -> bytes:
    """Return a TorchScript file without its debug files, which hold paths of this machine."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return out.getvalue()


def _as_text(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True)
