"""Array backends (GPU, or CPU threads), and slabs of volumes.

Takes:  "auto", "cpu", "numpy" or "gpu".
Gives:  a `Backend`: its array module, its device and its number of threads.

`get_backend` returns one, `gpu_is_at_hand` says whether CuPy finds a CUDA device. The slab functions work on
a volume slab by slab, on all threads; this limits the memory, and the result does not depend on the number of
threads. `unite` joins two sets of a union-find. The CUDA kernels are in kernels.cu. Every backend gives the
same bits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
