// Outlines of regions on the three planes: lines along the faces between voxels of different ids, so that they are as
// thin as a pixel whatever the voxel size. NiiVue's own outline of label maps is a voxel wide, and also marks voxels
// whose neighbour in front or behind differs; atoms would be covered by it.

// For each plane of NiiVue (0 axial, 1 coronal, 2 sagittal): the axes of (z, y, x) that run right, up, and through it.
const AXES = [[2, 1, 0], [2, 0, 1], [1, 0, 2]];

/** Return the tile of the canvas that shows a plane: functions from mm along its axes to pixels. */
function placeOf({ leftTopWidthHeight, leftTopMM, fovMM }) {
  let [left, top, width, height] = leftTopWidthHeight;
  const mirrored = width < 0;
  if (mirrored) (left += width), (width = -width);
  return {
    clip: [left, top, width, height],
    across: (mm) => left + width * (mirrored ? 1 - (mm - leftTopMM[0]) / fovMM[0] : (mm - leftTopMM[0]) / fovMM[0]),
    down: (mm) => top + height * (1 - (mm - leftTopMM[1]) / fovMM[1]),
  };
}

/** Draw the faces between different ids on a plane. */
export function drawOutlines(context, tile, { ids, shape, spacing, point, color, width }) {
  const [right, up, through] = AXES[tile.axCorSag];
  const strides = [shape[1] * shape[2], shape[2], 1];
  const start = point[through] * strides[through];
  const { clip, across, down } = placeOf(tile);
  const columns = Array.from({ length: shape[right] + 1 }, (_, i) => across((i - 0.5) * spacing[right]));
  const rows = Array.from({ length: shape[up] + 1 }, (_, i) => down((i - 0.5) * spacing[up]));
  const lines = new Path2D();
  for (let j = 0; j < shape[up]; j++)
    for (let i = 0; i < shape[right]; i++) {
      const at = start + i * strides[right] + j * strides[up];
      if (i + 1 < shape[right] && ids[at] !== ids[at + strides[right]]) {
        lines.moveTo(columns[i + 1], rows[j]);
        lines.lineTo(columns[i + 1], rows[j + 1]);
      }
      if (j + 1 < shape[up] && ids[at] !== ids[at + strides[up]]) {
        lines.moveTo(columns[i], rows[j + 1]);
        lines.lineTo(columns[i + 1], rows[j + 1]);
      }
    }
  context.save();
  context.beginPath();
  context.rect(...clip);
  context.clip();
  context.lineCap = "square";
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke(lines);
  context.restore();
}

/** Draw a cross of thin lines through a voxel, open in the middle so that the voxel is seen. */
export function drawCross(context, tile, { spacing, point }) {
  const [right, up] = AXES[tile.axCorSag];
  const { clip, across, down } = placeOf(tile);
  const [left, top, width, height] = clip;
  const x = across(point[right] * spacing[right]), y = down(point[up] * spacing[up]), gap = 8;
  const lines = new Path2D();
  for (const [x0, y0, x1, y1] of [[left, y, x - gap, y], [x + gap, y, left + width, y], [x, top, x, y - gap], [x, y + gap, x, top + height]]) {
    lines.moveTo(x0, y0);
    lines.lineTo(x1, y1);
  }
  context.save();
  context.beginPath();
  context.rect(...clip);
  context.clip();
  for (const [color, width] of [["rgba(0, 0, 0, 0.6)", 3], ["rgba(255, 255, 255, 0.9)", 1]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.stroke(lines);
  }
  context.restore();
}
