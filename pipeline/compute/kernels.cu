// CUDA kernels for steps that the array module cannot do in a few calls. Each kernel does the same as the compiled
// CPU loop that is named above it: the same integers, and the same float32 operations in the same order.
//
// Threads share memory by atomics only, so that a C++ compiler can run the kernels too
// (tests/pipeline/host_cuda.py). Compile with --fmad=false: rounding a * b + c once instead of twice would change
// labels. Volumes are (Z, Y, X), x fastest.

#define ITEM ((long long)blockIdx.x * blockDim.x + threadIdx.x)

// Same as boundaries._smooth_axis_numba. One thread per voxel.
//   levels and out (Z, Y, X); weights (2 radius + 1,), sum 1,024.
extern "C" __global__ void smooth_axis(const short* levels, int Z, int Y, int X, int axis, const int* weights,
                                       int radius, short* out)
{
    if (ITEM >= (long long)Z * Y * X)
        return;
    int x = (int)(ITEM % X), y = (int)(ITEM / X % Y), z = (int)(ITEM / X / Y);
    int here = axis == 0 ? z : axis == 1 ? y : x, size = axis == 0 ? Z : axis == 1 ? Y : X;
    long long step = axis == 0 ? (long long)Y * X : axis == 1 ? X : 1;
    const short* line = levels + ITEM - here * step;
    int total = 512;
    for (int k = -radius; k <= radius; ++k) {
        int at = here + k < 0 ? 0 : here + k > size - 1 ? size - 1 : here + k;
        total += line[at * step] * weights[k + radius];
    }
    out[ITEM] = (short)(total >> 10);
}

// Same as boundaries._magnitude_numba. One thread per voxel.
//   levels (Z, Y, X); ratio (3,) weights of squared steps along z, y, x in 1/256; total (Z, Y, X), added to.
extern "C" __global__ void add_magnitude(const short* levels, int Z, int Y, int X, const long long* ratio, int* total)
{
    if (ITEM >= (long long)Z * Y * X)
        return;
    int x = (int)(ITEM % X), y = (int)(ITEM / X % Y), z = (int)(ITEM / X / Y);
    long long plane = (long long)Y * X;
    long long dz = levels[ITEM + (z < Z - 1 ? plane : 0)] - levels[ITEM - (z > 0 ? plane : 0)];
    long long dy = levels[ITEM + (y < Y - 1 ? X : 0)] - levels[ITEM - (y > 0 ? X : 0)];
    long long dx = levels[ITEM + (x < X - 1 ? 1 : 0)] - levels[ITEM - (x > 0 ? 1 : 0)];
    long long square = (dz * dz * ratio[0] + dy * dy * ratio[1] + dx * dx * ratio[2]) >> 8;
    total[ITEM] += (int)sqrt((double)square);
}

// Same as minhash._sketch. One thread per voxel.
//   labels (voxels,); out (R, 32), all bits set at first.
extern "C" __global__ void sketch(const int* labels, long long voxels, unsigned int* out)
{
    long long i = ITEM;
    if (i >= voxels)
        return;
    unsigned int* mine = out + (long long)labels[i] * 32;
    unsigned long long seed = (unsigned long long)i * 0x9E3779B97F4A7C15ULL;
    seed ^= seed >> 29;
    for (int k = 0; k < 32; k += 2) {
        unsigned long long mixed = seed + (unsigned long long)(k + 1) * 0xD1B54A32D192ED03ULL;
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ULL;
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBULL;
        mixed ^= mixed >> 31;
        unsigned int high = (unsigned int)(mixed >> 32), low = (unsigned int)mixed;
        // Values only fall: an outdated value costs one more atomic, but does not change the result.
        if (high < mine[k])
            atomicMin(mine + k, high);
        if (low < mine[k + 1])
            atomicMin(mine + k + 1, low);
    }
}

// Number of voxels and first voxel of each label. One thread per 32 voxels: a long run costs one atomic.
//   labels (voxels,); sizes (R,), 0 at first; first (R,), the number of voxels at first.
extern "C" __global__ void tally(const int* labels, long long voxels, int* sizes, int* first)
{
    long long i = ITEM * 32, stop = i + 32 < voxels ? i + 32 : voxels;
    while (i < stop) {
        long long begin = i;
        int label = labels[i];
        while (i < stop && labels[i] == label)
            ++i;
        atomicAdd(sizes + label, (int)(i - begin));
        if ((int)begin < first[label])
            atomicMin(first + label, (int)begin);
    }
}

// Same as refinement.measure. One thread per 32 voxels of a row.
//   atoms (Z, Y, X); voxels (A,), 0 at first; boxes (A, 6), the largest number three times, then 0.
extern "C" __global__ void measure(const int* atoms, int Z, int Y, int X, int* voxels, int* boxes)
{
    int stretches = (X + 31) / 32;
    if (ITEM >= (long long)Z * Y * stretches)
        return;
    int y = (int)(ITEM / stretches % Y), z = (int)(ITEM / stretches / Y);
    int x = (int)(ITEM % stretches) * 32, stop = x + 32 < X ? x + 32 : X;
    const int* row = atoms + ((long long)z * Y + y) * X;
    while (x < stop) {
        int begin = x, atom = row[x];
        while (x < stop && row[x] == atom)
            ++x;
        int* box = boxes + (long long)atom * 6;
        atomicAdd(voxels + atom, x - begin);
        if (z < box[0])
            atomicMin(box, z);
        if (y < box[1])
            atomicMin(box + 1, y);
        if (begin < box[2])
            atomicMin(box + 2, begin);
        if (z + 1 > box[3])
            atomicMax(box + 3, z + 1);
        if (y + 1 > box[4])
            atomicMax(box + 4, y + 1);
        if (x > box[5])
            atomicMax(box + 5, x);
    }
}

// One region of a tree (outlines.paint_smoothed).
struct Region {
    int z0, y0, x0, z1, y1, x1; // box, from the edge of a block to the edge of a block, or of the scan
    int stride, passes;         // voxels per block along each axis, and number of blur passes
    int first, last;            // 1 + rank of the region, and of the last region inside it
    int around;                 // 1 + rank of its parent, or 0
};

#define BLOCKS(size, stride) (((size) - 1) / (stride) + 1)
#define GRID_OF(r)                                                                                                     \
    int nz = BLOCKS(r.z1 - r.z0, r.stride), ny = BLOCKS(r.y1 - r.y0, r.stride), nx = BLOCKS(r.x1 - r.x0, r.stride)

// Same as outlines._samples and _counted. One thread per block.
//   ranks (Z, Y, X), 1 + rank of the innermost region of each voxel; counts and means (nz, ny, nx).
extern "C" __global__ void count_blocks(const unsigned short* ranks, int Z, int Y, int X, const Region* regions,
                                        int region, unsigned short* counts, float* means)
{
    Region r = regions[region];
    GRID_OF(r);
    if (ITEM >= (long long)nz * ny * nx)
        return;
    int c = (int)(ITEM % nx), b = (int)(ITEM / nx % ny), a = (int)(ITEM / nx / ny);
    int step = r.stride > 2 ? 2 : 1, side = (r.stride - 1) / step + 1;
    int inside = 0;
    for (int i = 0; i < side; ++i) {
        int z = r.z0 + a * r.stride + i * step;
        z = z < Z - 1 ? z : Z - 1;
        for (int j = 0; j < side; ++j) {
            int y = r.y0 + b * r.stride + j * step;
            y = y < Y - 1 ? y : Y - 1;
            const unsigned short* row = ranks + ((long long)z * Y + y) * X;
            for (int k = 0; k < side; ++k) {
                int x = r.x0 + c * r.stride + k * step;
                int rank = row[x < X - 1 ? x : X - 1];
                inside += rank >= r.first && rank <= r.last;
            }
        }
    }
    counts[ITEM] = (unsigned short)inside;
    means[ITEM] = (float)inside / (float)(side * side * side);
}

__device__ inline float binomial(float before, float here, float after)
{
    return 0.5f * here + 0.25f * (before + after);
}

// Same as outlines._binomial: along x, then y, then z, each rounded. One thread per block.
extern "C" __global__ void blur_blocks(const Region* regions, int region, const float* field, float* out)
{
    Region r = regions[region];
    GRID_OF(r);
    if (ITEM >= (long long)nz * ny * nx)
        return;
    int c = (int)(ITEM % nx), b = (int)(ITEM / nx % ny), a = (int)(ITEM / nx / ny);
    int left = c > 0 ? c - 1 : 0, right = c < nx - 1 ? c + 1 : nx - 1;
    float planes[3];
    for (int i = -1; i <= 1; ++i) {
        int z = a + i < 0 ? 0 : a + i > nz - 1 ? nz - 1 : a + i;
        float rows[3];
        for (int j = -1; j <= 1; ++j) {
            int y = b + j < 0 ? 0 : b + j > ny - 1 ? ny - 1 : b + j;
            const float* row = field + ((long long)z * ny + y) * nx;
            rows[j + 1] = binomial(row[left], row[c], row[right]);
        }
        planes[i + 1] = binomial(rows[0], rows[1], rows[2]);
    }
    out[ITEM] = binomial(planes[0], planes[1], planes[2]);
}

// Same as outlines._overlap. Each of `threads` threads adds up every `threads`-th block.
//   overlap (regions, 3), 0 at first: samples in both the region and its blur, in the region, and in its blur.
extern "C" __global__ void overlap_blocks(const Region* regions, int region, const unsigned short* counts,
                                          const float* field, int threads, unsigned long long* overlap)
{
    Region r = regions[region];
    GRID_OF(r);
    if (ITEM >= threads)
        return;
    int side = (r.stride - 1) / (r.stride > 2 ? 2 : 1) + 1, all = side * side * side;
    unsigned long long both = 0, before = 0, after = 0;
    for (long long i = ITEM; i < (long long)nz * ny * nx; i += threads) {
        bool kept = field[i] > 0.5f;
        both += kept ? counts[i] : 0;
        before += counts[i];
        after += kept ? all : 0;
    }
    if (before || after) {
        atomicAdd(overlap + 3 * region, both);
        atomicAdd(overlap + 3 * region + 1, before);
        atomicAdd(overlap + 3 * region + 2, after);
    }
}

// IoU of a region with its blurred region, from the sums of overlap_blocks.
__device__ inline double iou_of(const unsigned long long* overlap)
{
    unsigned long long either = overlap[1] + overlap[2] - overlap[0];
    return (double)overlap[0] / (double)(either ? either : 1);
}

__device__ inline float mixed(float first, float second, float share)
{
    return first + share * (second - first);
}

// Same as outlines._paint_blurred, or _paint_members if the blur would change too much. One thread per voxel.
//   field and, of half the passes, half_field (nz, ny, nx), with the overlap of each; out (Z, Y, X), 1 + rank of the
//   innermost region painted so far.
extern "C" __global__ void paint(const unsigned short* ranks, int Y, int X, const Region* regions, int region,
                                 const float* field, const float* half_field, const unsigned long long* overlap,
                                 const unsigned long long* half_overlap, double least_iou, double least_volume,
                                 unsigned short* out)
{
    Region r = regions[region];
    int sy = r.y1 - r.y0, sx = r.x1 - r.x0;
    if (ITEM >= (long long)(r.z1 - r.z0) * sy * sx)
        return;
    int x = (int)(ITEM % sx), y = (int)(ITEM / sx % sy), z = (int)(ITEM / sx / sy);
    long long voxel = ((long long)(r.z0 + z) * Y + r.y0 + y) * X + r.x0 + x;
    if (out[voxel] != r.around)
        return;
    const unsigned long long* sums = overlap + 3 * region;
    if (iou_of(sums) < least_iou || (double)sums[2] / (double)(sums[1] ? sums[1] : 1) < least_volume) {
        field = half_field;
        sums = half_overlap + 3 * region;
    }
    if (!r.passes || iou_of(sums) < least_iou) {
        if (ranks[voxel] >= r.first && ranks[voxel] <= r.last)
            out[voxel] = (unsigned short)r.first;
        return;
    }
    GRID_OF(r);
    int half = r.stride / 2; // the last block with its centre at or before the voxel; -1 if there is none
    int a = z < half ? -1 : (z - half) / r.stride, za = a > 0 ? a : 0, zb = a + 1 < nz ? a + 1 : nz - 1;
    int b = y < half ? -1 : (y - half) / r.stride, ya = b > 0 ? b : 0, yb = b + 1 < ny ? b + 1 : ny - 1;
    int c = x < half ? -1 : (x - half) / r.stride, xa = c > 0 ? c : 0, xb = c + 1 < nx ? c + 1 : nx - 1;
    const float* plane = field + (long long)za * ny * nx;
    const float* next = field + (long long)zb * ny * nx;
    float corner[8] = {
        plane[ya * nx + xa], plane[ya * nx + xb], plane[yb * nx + xa], plane[yb * nx + xb],
        next[ya * nx + xa],  next[ya * nx + xb],  next[yb * nx + xa],  next[yb * nx + xb],
    };
    float most = corner[0], least = corner[0];
    for (int i = 1; i < 8; ++i) {
        most = corner[i] > most ? corner[i] : most;
        least = corner[i] < least ? corner[i] : least;
    }
    if (!(most > 0.5f))
        return;
    if (!(least > 0.5f)) {
        float w = (float)(((double)z + 0.5) / r.stride - 0.5 - a);
        float v = (float)(((double)y + 0.5) / r.stride - 0.5 - b);
        float u = (float)(((double)x + 0.5) / r.stride - 0.5 - c);
        float near = mixed(mixed(corner[0], corner[1], u), mixed(corner[2], corner[3], u), v);
        float far = mixed(mixed(corner[4], corner[5], u), mixed(corner[6], corner[7], u), v);
        if (!(mixed(near, far, w) > 0.5f))
            return;
    }
    out[voxel] = (unsigned short)r.first;
}

// Same as slivers._fill. One thread per pair.
//   pairs (E, 2); changes (E,), negative where not computed; ranks (A, nests); weights and around (nests, length).
extern "C" __global__ void pair_changes(const int* pairs, long long num_pairs, double* changes,
                                        const unsigned short* ranks, int nests, const double* weights,
                                        const long long* around, int length)
{
    long long p = ITEM;
    if (p >= num_pairs || changes[p] >= 0)
        return;
    const unsigned short* one = ranks + (long long)pairs[2 * p] * nests;
    const unsigned short* other = ranks + (long long)pairs[2 * p + 1] * nests;
    double total = 0;
    for (int row = 0; row < nests; ++row) {
        long long i = one[row], j = other[row];
        while (i != j) {
            if (i > j) {
                total += weights[(long long)row * length + i];
                i = around[(long long)row * length + i];
            } else {
                total += weights[(long long)row * length + j];
                j = around[(long long)row * length + j];
            }
        }
    }
    changes[p] = total;
}

// Bits of a number that is not negative; they have the order of the numbers.
__device__ inline unsigned long long ordered(double value)
{
    union {
        double number;
        unsigned long long bits;
    } both;
    both.number = value;
    return both.bits;
}

// Same as slivers._least_costs, in two steps: the least change of each sliver, then the lowest neighbour that has it.
//   voxels (A,); least (A,), bits of infinity at first; neighbour (A,), the largest number at first.
extern "C" __global__ void least_changes(const int* pairs, long long num_pairs, const double* changes,
                                         const long long* voxels, int most_voxels, unsigned long long* least)
{
    if (ITEM >= num_pairs)
        return;
    for (int side = 0; side < 2; ++side) {
        int atom = pairs[2 * ITEM + side];
        if (voxels[atom] <= most_voxels)
            atomicMin(least + atom, ordered(changes[ITEM]));
    }
}

extern "C" __global__ void least_neighbours(const int* pairs, long long num_pairs, const double* changes,
                                            const long long* voxels, int most_voxels, const unsigned long long* least,
                                            int* neighbour)
{
    if (ITEM >= num_pairs)
        return;
    for (int side = 0; side < 2; ++side) {
        int atom = pairs[2 * ITEM + side];
        if (voxels[atom] <= most_voxels && ordered(changes[ITEM]) == least[atom])
            atomicMin(neighbour + atom, pairs[2 * ITEM + 1 - side]);
    }
}
