"""The encoder as TorchScript and ONNX: the same features as in PyTorch, for any size that it takes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from training.errors import ConfigError
from training.network import graphs
from training.network.graphs import OUTPUTS, export_onnx, export_torchscript, features_metadata
from training.network.iris import Iris

if TYPE_CHECKING:  # seconds, which only the process that runs these tests pays
    import onnxruntime

CHANNELS = (4, 8, 16, 32, 64)
METADATA = {"image": {"spacing_mm": [1.5] * 3}}
SHAPES = [(1, 1, 16, 16, 16), (2, 1, 32, 48, 64), (3, 1, 64, 16, 32), (1, 1, 96, 128, 96)]
"""The smallest; that of the recording; a larger batch; one that shows sums in float32."""
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def net() -> Iris:
    torch.manual_seed(0)
    return Iris(CHANNELS, 1).eval()


@pytest.fixture(scope="module")
def onnx_file(net: Iris, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    return export_onnx(net, path, features_metadata(net, METADATA["image"]))


@pytest.fixture(scope="module")
def torchscript_file(net: Iris, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchscript") / "encoder.ts"
    return export_torchscript(net, path, features_metadata(net, METADATA["image"]))


def loaded(path: Path, extra: dict[str, str] | None = None) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        return torch.jit.load(str(path), _extra_files=extra)


def session(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_are_the_same_in_pytorch_torchscript_and_onnx_runtime(
    net: Iris, onnx_file: Path, torchscript_file: Path, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    image = torch.randn(shape)
    with torch.no_grad():
        expected = net.encode(image)
        script: tuple[Tensor, ...] = loaded(torchscript_file)(image)
    runtime = session(onnx_file).run(list(OUTPUTS), {"image": image.numpy()})
    assert len(expected) == len(script) == len(runtime) == 5
    for feature, other, array in zip(expected, script, runtime, strict=True):
        assert float((feature - other).abs().max()) < TOLERANCE
        assert float((feature - torch.from_numpy(array)).abs().max()) < TOLERANCE


def test_the_onnx_file_names_its_axes_outputs_and_metadata(onnx_file: Path) -> None:
    model = session(onnx_file)
    (image,) = model.get_inputs()
    assert (image.name, image.shape) == ("image", ["batch", 1, "16*z16", "16*y16", "16*x16"])
    assert {output.name: output.shape[1] for output in model.get_outputs()} == dict(
        zip(OUTPUTS, reversed(CHANNELS), strict=True)
    )
    told = json.loads(model.get_modelmeta().custom_metadata_map["mass3d"])
    assert told["channels"] == list(CHANNELS)
    assert told["image"] == METADATA["image"]


def test_torchscript_has_the_metadata_as_a_file_inside(torchscript_file: Path) -> None:
    extra = {"mass3d.json": ""}
    loaded(torchscript_file, extra)
    assert json.loads(extra["mass3d.json"])["image"] == METADATA["image"]


def test_no_file_tells_where_it_was_made(onnx_file: Path, torchscript_file: Path) -> None:
    here = str(Path(graphs.__file__).parents[2]).encode()
    for path in (onnx_file, torchscript_file):
        content = path.read_bytes()
        assert here not in content
        assert b"site-packages" not in content


@pytest.mark.long
def test_the_same_network_gives_the_same_onnx_file(net: Iris, onnx_file: Path, tmp_path: Path) -> None:
    again = export_onnx(net, tmp_path / "again.onnx", features_metadata(net, METADATA["image"]))
    assert again.read_bytes() == onnx_file.read_bytes()


def test_without_the_packages_the_error_says_how_to_install_them(
    net: Iris, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_ONNX_PACKAGES", ("onnx", "no_such_onnxscript"))
    with pytest.raises(ConfigError, match=r"no_such_onnxscript, which is not installed.*pip install"):
        export_onnx(net, tmp_path / "encoder.onnx", {})
    assert not list(tmp_path.iterdir())
