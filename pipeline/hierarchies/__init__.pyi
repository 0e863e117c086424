from .agglomeration import join_flat as join_flat
from .boundaries import (
    NUM_LEVELS as NUM_LEVELS,
    Levels as Levels,
    Window as Window,
    boundary_evidence as boundary_evidence,
)
from .components import component_tree as component_tree
from .merging import merge_weakest_consuming as merge_weakest_consuming
from .minhash import leaf_sketches as leaf_sketches, similar_pairs as similar_pairs
from .region_graphs import (
    RegionGraph as RegionGraph,
    merge_graph_consuming as merge_graph_consuming,
    region_graph as region_graph,
)
from .region_totals import (
    RegionSums as RegionSums,
    count_inside as count_inside,
    merge_sums as merge_sums,
    region_sums as region_sums,
    tally as tally,
)
from .supervoxels import (
    basins as basins,
    join_lowest_pass_in_place as join_lowest_pass_in_place,
    number_in_scan_order as number_in_scan_order,
    relabel_in_place as relabel_in_place,
)
from .tree_methods import TreeSpec as TreeSpec
from .trees import Hierarchy as Hierarchy, grow as grow
