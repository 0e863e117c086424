"""The Iris network (encoder, task encoding, decoder), and reading and writing of its weights.

Takes:  target and reference (B, 1, Z, Y, X), the reference's masks (B, K, Z, Y, X).
Gives:  logits (B, K, Z, Y, X).

`Iris` is the network (Gao et al., CVPR 2025, as in MASS). `load_checkpoint` reads checkpoints of every kind;
`export_weights` writes safetensors with a `ModelCard`. `TrainedOn` records how the training scans were
prepared. For other tools: `PlainUNet` and `FinetunedUNet` are plain modules with the same weights;
`export_torchscript`, `export_onnx`, `export_nnunet` and `export_..._bundle` write files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
