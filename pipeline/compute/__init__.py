"""Where arrays are computed, on a GPU or on CPU threads, and how volumes are cut into slabs.

Takes:  "auto", "cpu", "numpy" or "gpu".
Gives:  a `Backend`: its array module, its device and its number of threads.

`get_backend` chooses one, `gpu_is_at_hand` says whether CuPy finds a CUDA device. The slab functions run a
step over slabs of a volume on all threads, so that memory is bounded and the result does not depend on their
number; `unite` joins two sets of a union-find. The CUDA kernels are in kernels.cu. Every backend gives the
same bits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
