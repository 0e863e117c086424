"""Triton kernels for CUDA, each with a plain form in PyTorch that it is tested against.

Takes:  float32, bfloat16 or float16 tensors on a GPU, volumes (B, C, Z, Y, X) in channels last.
Gives:  the same as the plain form, up to rounding, in fewer passes over memory. Sums are taken in float32, in
        a fixed order and without atomics, so the same input gives the same bits on one card.

`triton_norms`       instance norm and ReLU, also with the sum of a residual block before it
`triton_upsampling`  trilinear upsampling, written beside the skip connection
`triton_sums`        the sums over voxels that Dice and cross-entropy are made of

The network asks `use_kernels` for each tensor. The plain form is used on a CPU, without Triton (it comes with
PyTorch for CUDA), in other layouts, in recorded graphs, and with MASS_KERNELS=0 in the environment.
"""

from training.network.kernels.forms import (
    SWITCH as SWITCH,
    MaskSums as MaskSums,
    has_triton as has_triton,
    in_graph as in_graph,
    mask_sums as mask_sums,
    use_kernels as use_kernels,
)
