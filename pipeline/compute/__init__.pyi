from .backend import (
    HOST as HOST,
    Backend as Backend,
    DeviceArray as DeviceArray,
    get_backend as get_backend,
    gpu_is_at_hand as gpu_is_at_hand,
    num_gpus as num_gpus,
)
from .slabs import (
    for_each as for_each,
    over_slabs as over_slabs,
    slabs_of as slabs_of,
    summed_over_slabs as summed_over_slabs,
)
from .union_find import unite as unite
