"""Training and use of the Iris network: data loading, losses, trainer, inference and evaluation.

    from training import Iris, load_checkpoint, segment

    net = load_checkpoint("RUN/weights.safetensors")
    result = segment(net, references=[("ref.nii.gz", "mask.nii.gz")], target="scan.nii.gz")
    result.labels                            # (z, y, x) on the target's own grid
    result.save("scan_seg.nii.gz")
    logits = net(target, reference, masks)   # (B,1,Z,Y,X), (B,1,Z,Y,X), (B,K,Z,Y,X) -> (B,K,Z,Y,X)

Names are imported at their first use, so that `import training` itself takes no time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
