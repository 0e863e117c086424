// The volume viewer: three linked planes and a rendering by NiiVue, with painted regions, and outlines drawn over them.

import { fromBase64, gunzip, wholePage } from "mass3d/data.js";
import { drawCross, drawOutlines } from "mass3d/outlines.js";

const UINT8 = 2, INT16 = 4; // NIfTI's codes of types.
export const LAYOUTS = { planes: "three planes and 3D", axial: "axial", coronal: "coronal", sagittal: "sagittal", render: "3D" };

/** Return NiiVue, which lies compressed in the page and is unpacked when first needed. */
async function loadNiivue() {
  await wholePage();
  const packed = fromBase64(document.getElementById("niivue").textContent);
  const url = URL.createObjectURL(new Blob([await gunzip(packed)], { type: "text/javascript" }));
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

let niivue = null;

export class Viewer {
  /** Args: a box to fill; called with the voxel [z, y, x] whenever the cross moves. */
  constructor(box, onMove) {
    this.box = box;
    this.onMove = onMove;
    this.outlines = [];
    this.opacity = 0.5;
    this.cross = true;
  }

  /** Begin: NiiVue on a canvas, and a canvas for outlines over it. */
  async start() {
    niivue ??= loadNiivue();
    this.library = await niivue;
    const { Niivue, SHOW_RENDER, DRAG_MODE, MULTIPLANAR_TYPE } = this.library;
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.over = document.createElement("canvas");
    this.over.className = "over";
    this.box.replaceChildren(this.canvas, this.over);
    this.nv = new Niivue({
      logLevel: "error", dragAndDropEnabled: false, isRadiologicalConvention: true, sagittalNoseLeft: true,
      multiplanarShowRender: SHOW_RENDER.ALWAYS, multiplanarLayout: MULTIPLANAR_TYPE.GRID, multiplanarPadPixels: 4, crosshairWidth: 0, fontColor: [1, 1, 1, 1], dragMode: DRAG_MODE.slicer3D, loadingText: "", isColorbar: false,
      // NiiVue's shortcuts would act on any key pressed while the picture has the focus.
      viewModeHotKey: "", clipPlaneHotKey: "",
    });
    await this.nv.attachToCanvas(this.canvas, true);
    const draw = this.nv.drawScene.bind(this.nv);
    this.nv.drawScene = () => {
      draw();
      this.#drawOver();
    };
    this.nv.onLocationChange = ({ vox }) => this.#moved(vox);
  }

  /** Show another scan. */
  async show(scan) {
    const { NVImage } = this.library;
    this.scan = scan;
    const [nz, ny, nx] = scan.shape, [dz, dy, dx] = scan.spacing;
    const affine = [dx, 0, 0, 0, 0, dy, 0, 0, 0, 0, dz, 0, 0, 0, 0, 1];
    const make = (type, values, name) => {
      const file = NVImage.createNiftiArray([nx, ny, nz], [dx, dy, dz], affine, type, values);
      return NVImage.new(file.buffer, `${name}.nii`);
    };
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
    const image = await make(scan.image instanceof Uint8Array ? UINT8 : INT16, scan.image, "image");
    const { low, high, inverted } = scan.about.window;
    [image.cal_min, image.cal_max] = [low, high].map((value) => (value - scan.about.offset) / scan.about.scale);
    image.colormapInvert = inverted;
    this.nv.addVolume(image);
    this.paint = new Uint8Array(scan.image.length);
    this.painted = await make(UINT8, this.paint, "painted");
    this.painted.setColormapLabel(lookup([[0, 0, 0]]));
    this.nv.addVolume(this.painted);
    this.nv.setClipPlane([2, 0, 0]);
  }

  /** Show painted regions: uint8 values, with a colour [red, green, blue] for each value from 1 on. */
  setPaint(paint, colors) {
    this.painted.img.set(paint);
    this.painted.setColormapLabel(lookup([[0, 0, 0], ...colors]));
    this.painted.opacity = this.opacity;
    this.nv.updateGLVolume();
  }

  /** Set how much of the image shows through the paint, 0 to 1. */
  setOpacity(opacity) {
    this.opacity = opacity;
    this.painted.opacity = opacity;
    this.nv.updateGLVolume();
  }

  /** Set the outlines: [{ ids, color, width }], ids a number per voxel. */
  setOutlines(outlines) {
    this.outlines = outlines;
    this.nv.drawScene();
  }

  /** Show the planes and the rendering, one plane, or the rendering. */
  setLayout(name) {
    const { SLICE_TYPE } = this.library;
    const types = {
      planes: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL,
      sagittal: SLICE_TYPE.SAGITTAL, render: SLICE_TYPE.RENDER,
    };
    this.nv.setSliceType(types[name]);
  }

  /** Show or hide the cross. */
  setCross(shown) {
    this.cross = shown;
    this.nv.drawScene();
  }

  /** Move the cross to a voxel [z, y, x], without telling. */
  moveTo([z, y, x]) {
    this.point = [z, y, x];
    this.nv.scene.crosshairPos = this.nv.vox2frac([x, y, z]);
    this.nv.drawScene();
  }

  #moved(vox) {
    const point = [vox[2], vox[1], vox[0]].map((v, axis) => Math.min(Math.max(Math.round(v), 0), this.scan.shape[axis] - 1));
    const same = this.point?.every((v, axis) => v === point[axis]);
    this.point = point;
    if (!same) this.onMove(point);
  }

  #drawOver() {
    const { width, height } = this.canvas;
    Object.assign(this.over, { width, height });
    if (!this.scan || !this.point) return;
    const context = this.over.getContext("2d");
    const { shape, spacing } = this.scan;
    for (const tile of this.nv.screenSlices)
      if (tile.axCorSag <= 2) {
        for (const outline of this.outlines) drawOutlines(context, tile, { shape, spacing, point: this.point, ...outline });
        if (this.cross) drawCross(context, tile, { spacing, point: this.point });
      }
  }
}

/** Return NiiVue's table of colours: value k has colour k, value 0 none. */
function lookup(colors) {
  const channel = (k) => colors.map((color) => color[k]);
  return { R: channel(0), G: channel(1), B: channel(2), A: colors.map((_, k) => (k ? 255 : 0)), I: colors.map((_, k) => k), labels: colors.map(() => "") };
}
