// A scan as arrays: which proposals contain a voxel, and masks of proposals and labels. No drawing.
//
// Voxels are numbered z * Y * X + y * X + x; indices grow to head, front and right. A proposal is a range of a tree's
// segments of atoms (pipeline/report/packs.py); columns of the table: tree, first and last segment, z0 y0 x0, z1 y1 x1
// and voxels at level 0, source.

const COLUMNS = 11;
const [TREE, FIRST, LAST, BOX, VOXELS, SOURCE] = [0, 1, 2, 3, 9, 10];
const NO_ATOM = 65_534; // Ids from here on are no atoms.
const NUM_IDS = 65_536;

export const BOTH = 1, MISSED = 2, BEYOND = 3; // Values of a comparison.

export class Scan {
  constructor({ header, arrays }) {
    this.about = header.about;
    this.shape = arrays.image.shape;
    this.image = arrays.image.values;
    this.factors = this.about.level_factors;
    this.spacing = this.about.spacing_zyx_mm;
    this.fullVoxelMl = this.about.full_spacing_zyx_mm.reduce((p, mm) => p * mm, 1) / 1000;
    this.voxelMl = this.spacing.reduce((p, mm) => p * mm, 1) / 1000;
    this.layers = Array.from({ length: this.about.num_layers }, (_, layer) => arrays[`atoms_${layer}`].values);
    this.labels = this.about.labels.map((label, k) => ({ ...label, values: arrays[`label_${k}`].values }));
    this.table = arrays.proposals?.values ?? new Int32Array();
    this.scores = arrays.scores?.values ?? new Float32Array();
    // Of each tree: its layer, and the segment of each of the layer's atoms, 0 where no proposal has it.
    this.trees = this.about.trees.map(({ layer, row }) => {
      const { values, shape } = arrays[`segments_${layer}`];
      return { layer, segments: values.subarray(row * shape[1], (row + 1) * shape[1]) };
    });
    this.numProposals = this.table.length / COLUMNS;
  }

  /** Return the number of a voxel. */
  index(z, y, x) {
    const [, ny, nx] = this.shape;
    return (z * ny + y) * nx + x;
  }

  /** Return a voxel's intensity in real units. */
  intensity(voxel) {
    return this.image[voxel] * this.about.scale + this.about.offset;
  }

  /** Return what is known about a proposal. */
  proposal(row) {
    const at = row * COLUMNS;
    return {
      row,
      ml: this.table[at + VOXELS] * this.fullVoxelMl,
      source: this.about.sources[this.table[at + SOURCE]] ?? "",
      score: this.scores[row],
    };
  }

  /** Return the rows of the proposals that contain a voxel, from the smallest to the largest. */
  proposalsAt(voxel) {
    const here = this.trees.map(({ layer, segments }) => segments[this.layers[layer][voxel]] ?? 0);
    const rows = [];
    for (let row = 0; row < this.numProposals; row++) {
      const at = row * COLUMNS, segment = here[this.table[at + TREE]];
      if (segment >= this.table[at + FIRST] && segment <= this.table[at + LAST]) rows.push(row);
    }
    return rows.sort((a, b) => this.table[a * COLUMNS + VOXELS] - this.table[b * COLUMNS + VOXELS]);
  }

  /** Call `visit` with each voxel of a proposal at this level. */
  eachVoxel(row, visit) {
    const at = row * COLUMNS;
    const { layer, segments } = this.trees[this.table[at + TREE]];
    const first = this.table[at + FIRST], last = this.table[at + LAST];
    const member = new Uint8Array(NUM_IDS);
    segments.forEach((segment, atom) => (member[atom] = segment >= first && segment <= last ? 1 : 0));
    const low = this.factors.map((f, axis) => Math.floor(this.table[at + BOX + axis] / f));
    const high = this.factors.map((f, axis) => Math.ceil(this.table[at + BOX + 3 + axis] / f));
    for (let z = low[0]; z < high[0]; z++)
      for (let y = low[1]; y < high[1]; y++) {
        const start = this.index(z, y, 0);
        for (let x = low[2]; x < high[2]; x++) if (member[this.layers[layer][start + x]]) visit(start + x);
      }
  }

  /** Paint the atom at a voxel; return its volume in mL, null where no atom is. */
  paintAtom(paint, voxel, value) {
    const ids = this.layers[0];
    if (!ids || ids[voxel] >= NO_ATOM) return null;
    let count = 0;
    for (let i = 0; i < ids.length; i++) if (ids[i] === ids[voxel]) (paint[i] = value), count++;
    return count * this.voxelMl;
  }

  /** Paint proposals, each in its own value, the first on top. */
  paintProposals(paint, rows, valueOf) {
    [...rows].reverse().forEach((row) => this.eachVoxel(row, (voxel) => (paint[voxel] = valueOf(row))));
  }

  /** Paint all values of a label map. */
  paintLabels(paint, map, valueOf) {
    const { values } = this.labels[map];
    for (let i = 0; i < values.length; i++) if (values[i]) paint[i] = valueOf(values[i]);
  }

  /** Paint a candidate against a structure: what both have, what is missed, what is beyond; return mL of each. */
  paintComparison(paint, { label, value, row, other, other_value }) {
    const { values } = this.labels[label];
    for (let i = 0; i < values.length; i++) if (values[i] === value) paint[i] = MISSED;
    const mark = (voxel) => (paint[voxel] = paint[voxel] === MISSED ? BOTH : BEYOND);
    if (row >= 0) this.eachVoxel(row, mark);
    else if (other >= 0) this.labels[other].values.forEach((v, voxel) => v === other_value && mark(voxel));
    const counts = [0, 0, 0, 0];
    for (const mark of paint) counts[mark]++;
    return { both: counts[BOTH] * this.voxelMl, missed: counts[MISSED] * this.voxelMl, beyond: counts[BEYOND] * this.voxelMl };
  }

  /** Return the best-ranked rows, of those given, that overlap the chosen ones by less than a tenth. */
  disjoint(rows, most) {
    const taken = new Uint8Array(this.image.length), chosen = [];
    for (const row of rows) {
      let size = 0, shared = 0;
      this.eachVoxel(row, (voxel) => (size++, (shared += taken[voxel])));
      if (size === 0 || shared > 0.1 * size) continue;
      this.eachVoxel(row, (voxel) => (taken[voxel] = 1));
      if (chosen.push(row) === most) break;
    }
    return chosen;
  }

  /** Return the voxel [z, y, x] in the middle of what is painted (the painted voxel nearest to the mean). */
  middle(paint) {
    const [nz, ny, nx] = this.shape;
    let sum = [0, 0, 0], count = 0;
    const each = (visit) => {
      for (let z = 0, i = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, i++) if (paint[i]) visit(z, y, x);
    };
    each((z, y, x) => ((sum[0] += z), (sum[1] += y), (sum[2] += x), count++));
    if (!count) return null;
    const mean = sum.map((s) => s / count);
    let best = Infinity, found = null;
    each((z, y, x) => {
      const d = (z - mean[0]) ** 2 + (y - mean[1]) ** 2 + (x - mean[2]) ** 2;
      if (d < best) (best = d), (found = [z, y, x]);
    });
    return found;
  }
}
