// A scan in the viewer with its controls: from atom to organ at a voxel, chosen proposals, labels and their best match.

import { element, number, volume } from "mass3d/dom.js";
import { BEYOND, BOTH, MISSED, Scan } from "mass3d/scan.js";
import { LAYOUTS, Viewer } from "mass3d/viewer.js";

const MODES = { ladder: "Atom to organ", proposals: "Proposals", labels: "Labels" };
const MOST_SHOWN = 12; // Proposals at once: so many colours there are.
const FIRST_SIZE = 2; // The size class shown first: 10 to 100 mL.
const FIRST_ML = 30; // Size of the region shown first where no label says one.
const MOST_OUTLINED = 12; // Structures up to which labels are outlined at first.
const MOST_TRIED = 400; // Best-ranked proposals of a size that are looked at for disjoint ones.

const KEYS = { // Steps along (z, y, x): as the axial plane is seen, right of the patient on the left.
  ArrowLeft: [0, 0, 1], ArrowRight: [0, 0, -1], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [1, 0, 0], PageDown: [-1, 0, 0],
};

const css = (color) => `rgb(${color.join(" ")})`;
const swatch = (color) => {
  const made = element("span", { className: "swatch", aria: { hidden: "true" } });
  made.style.background = css(color);
  return made;
};

export class Explorer {
  /** Args: box to fill; `Packs`; colours and size classes of the page (pipeline/report/web_page.py). */
  constructor(box, packs, settings) {
    this.packs = packs;
    this.settings = settings;
    this.unusual = new Map(); // By scan, what is unlike the others of its data set.
    this.mode = "ladder";
    this.wantedMl = FIRST_ML;
    this.#build(box);
    this.viewer = new Viewer(this.stage, (point) => this.#moved(point));
  }

  /** Show a scan; a level of it where there is a server. */
  async open(scanId, level = null) {
    this.status.textContent = `Loading ${scanId} …`;
    this.root.setAttribute("aria-busy", "true");
    try {
      this.started ??= this.viewer.start();
      const [pack] = await Promise.all([this.packs.load(scanId, level), this.started]);
      await this.#show(new Scan(pack));
      this.status.textContent = "";
    } catch (error) {
      this.status.textContent = `${scanId} cannot be shown: ${error.message}`;
      throw error;
    } finally {
      this.root.removeAttribute("aria-busy");
    }
  }

  async #show(scan) {
    this.root.classList.remove("empty");
    this.scan = scan;
    this.paint = new Uint8Array(scan.image.length);
    this.title.textContent = scan.about.scan_id;
    this.subtitle.textContent = [scan.about.dataset, scan.about.modality.toUpperCase(), `${scan.shape.join(" × ")} voxels of ${scan.spacing.map((mm) => number(mm)).join(" × ")} mm`].join(" · ");
    const reasons = this.unusual.get(scan.about.scan_id);
    this.reasons.textContent = reasons ? `Unusual: ${reasons}` : "";
    this.#fillLevels();
    this.#fillSources();
    this.#fillPairs();
    this.facts.replaceChildren(...scan.about.facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    await this.viewer.show(scan);
    this.tabs.ladder.hidden = this.tabs.proposals.hidden = !scan.numProposals;
    this.tabs.labels.hidden = !scan.labels.length;
    // Outlines of a whole atlas would cover the picture.
    this.showLabels.checked = scan.about.pairs.length <= MOST_OUTLINED;
    this.#go(this.#start());
    this.setMode(scan.numProposals ? this.mode : "labels");
    this.#outline();
  }

  /** Return the voxel to begin at: in the middle of a structure, or of the scan. */
  #start() {
    const { scan } = this;
    const pair = scan.about.pairs.at(-1);
    if (pair) {
      const paint = new Uint8Array(scan.image.length);
      scan.labels[pair.label].values.forEach((value, voxel) => (paint[voxel] = value === pair.value));
      this.wantedMl = paint.reduce((sum, one) => sum + one, 0) * scan.voxelMl || FIRST_ML;
      const middle = scan.middle(paint);
      if (middle) return middle;
    }
    return scan.shape.map((n) => n >> 1);
  }

  /** Show one of the modes. */
  setMode(mode) {
    this.mode = mode;
    for (const [name, tab] of Object.entries(this.tabs)) {
      tab.setAttribute("aria-selected", String(name === mode));
      tab.tabIndex = name === mode ? 0 : -1;
      this.panels[name].hidden = name !== mode;
    }
    if (mode === "ladder") this.#climb();
    if (mode === "proposals") this.#choose();
    if (mode === "labels") this.#compare(this.pair ?? null);
  }

  /** Move the cross to a voxel [z, y, x], and tell what is there. */
  #go(point) {
    this.viewer.moveTo(point);
    this.#read(point);
  }

  #moved(point) {
    this.#read(point);
    if (this.mode === "ladder") this.#climb();
  }

  #read(point) {
    const voxel = this.scan.index(...point);
    const { unit } = this.scan.about;
    const name = (label, map) => label.values[voxel] && `${this.predicted.has(map) ? "predicted: " : ""}${label.names[label.values[voxel]] ?? `${label.name} ${label.values[voxel]}`}`;
    const here = this.scan.labels.map(name).filter(Boolean);
    this.readout.textContent = `voxel ${point.join(", ")} (z, y, x) · ${number(this.scan.intensity(voxel), 4)}${unit && unit !== "arbitrary" ? ` ${unit}` : ""}${here.length ? ` · ${here.join(", ")}` : ""}`;
  }

  // --- from atom to organ

  #climb() {
    const { scan, viewer } = this;
    const voxel = scan.index(...viewer.point);
    this.rows = scan.proposalsAt(voxel);
    this.slider.max = String(this.rows.length);
    const sizes = this.rows.map((row) => Math.abs(Math.log(scan.proposal(row).ml / this.wantedMl)));
    // The step whose size is nearest to the one chosen last; at first to that of the structure shown.
    this.slider.value = String(1 + sizes.indexOf(Math.min(...sizes)));
    this.#step();
  }

  #step() {
    const { scan } = this;
    const voxel = scan.index(...this.viewer.point), step = Number(this.slider.value);
    this.paint.fill(0);
    if (step === 0) {
      const ml = scan.paintAtom(this.paint, voxel, 1);
      this.rung.textContent = ml === null ? "no atom here" : `atom · ${volume(ml)}`;
    } else {
      const { row, ml, source, score } = scan.proposal(this.rows[step - 1]);
      scan.eachVoxel(row, (voxel) => (this.paint[voxel] = 1));
      this.rung.textContent = `${step} of ${this.rows.length} · ${volume(ml)} · ${source} · score ${number(score, 2)} · ranked ${number(row + 1)} of ${number(scan.numProposals)}`;
    }
    this.slider.setAttribute("aria-valuetext", this.rung.textContent);
    this.viewer.setPaint(this.paint, [this.settings.proposal]);
  }

  #stepped() {
    const step = Number(this.slider.value);
    this.wantedMl = step ? this.scan.proposal(this.rows[step - 1]).ml : 1e-9;
    this.#step();
  }

  // --- chosen proposals

  #choose() {
    const { scan } = this;
    const [low, high] = this.sizes.value.split(" ").map(Number);
    const rows = [];
    for (let row = 0; row < scan.numProposals && rows.length < MOST_TRIED; row++) {
      const { ml, source } = scan.proposal(row);
      if (ml >= low && ml < high && (!this.sources.value || source === this.sources.value)) rows.push(row);
    }
    this.chosen = scan.disjoint(rows, MOST_SHOWN);
    this.hidden = new Set();
    this.list.replaceChildren(...this.chosen.map((row, k) => this.#item(row, k)));
    if (!this.chosen.length) this.list.append(element("li", { className: "quiet" }, "no proposal of this size and source"));
    this.#paintChosen();
  }

  #item(row, k) {
    const { ml, source } = this.scan.proposal(row);
    const box = element("input", { type: "checkbox", checked: true, onchange: () => {
      if (box.checked) this.hidden.delete(row);
      else this.hidden.add(row);
      this.#paintChosen();
    } });
    const go = element("button", { type: "button", className: "link", title: "Move the cross there", onclick: () => {
      const only = new Uint8Array(this.paint.length);
      this.scan.eachVoxel(row, (voxel) => (only[voxel] = 1));
      const middle = this.scan.middle(only);
      if (middle) this.#go(middle);
    } }, `#${row + 1}`);
    return element("li", {}, element("label", {}, box, swatch(this.settings.palette[k]), ` ${volume(ml)} · ${source} `), go);
  }

  #paintChosen() {
    this.paint.fill(0);
    const shown = this.chosen.filter((row) => !this.hidden.has(row));
    this.scan.paintProposals(this.paint, shown, (row) => 1 + this.chosen.indexOf(row));
    this.viewer.setPaint(this.paint, this.settings.palette);
  }

  // --- labels, and what matches them best

  #compare(pair) {
    this.pair = pair;
    const { scan, settings } = this;
    for (const button of this.pairs.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.pair === pair));
    this.paint.fill(0);
    if (pair) {
      const { both, missed, beyond } = scan.paintComparison(this.paint, pair);
      const whole = both + missed || 1;
      const parts = [[BOTH, `both: ${volume(both)}`], [MISSED, `missed: ${volume(missed)} (${Math.round((100 * missed) / whole)}%)`], [BEYOND, `beyond the label: ${volume(beyond)}`]];
      this.legend.replaceChildren(
        element("p", {}, `${pair.name}: IoU ${pair.iou.toFixed(3)}, Dice ${pair.dice.toFixed(3)}${pair.row >= 0 ? `, proposal #${pair.row + 1}` : ""}${pair.note ? `, ${pair.note}` : ""}`),
        ...parts.map(([value, text]) => element("p", {}, swatch(settings.comparison[value - 1]), ` ${text}`)),
      );
      const middle = scan.middle(this.paint);
      if (middle) this.#go(middle);
      this.viewer.setPaint(this.paint, settings.comparison);
    } else {
      scan.labels.forEach((_, map) => this.predicted.has(map) || scan.paintLabels(this.paint, map, (value) => 1 + ((value - 1) % MOST_SHOWN)));
      const outlined = this.predicted.size ? " White outlines: what was predicted." : "";
      this.legend.replaceChildren(element("p", { className: "quiet" }, `Each value of the labels in a colour; colours repeat after twelve.${outlined}`));
      this.viewer.setPaint(this.paint, settings.palette);
    }
  }

  #fillPairs() {
    const { pairs } = this.scan.about;
    // Label maps that are predictions, beside those of experts.
    this.predicted = new Set(pairs.map(({ other }) => other).filter((map) => map >= 0));
    this.pair = this.predicted.size ? pairs[0] : null;
    const button = (pair, ...content) => {
      const made = element("button", { type: "button", className: "row", onclick: () => this.#compare(pair) }, ...content);
      made.pair = pair;
      return element("li", {}, made);
    };
    this.pairs.replaceChildren(
      button(null, "all labels"),
      ...pairs.map((pair) => {
        const bar = element("meter", { min: 0, max: 1, value: pair.iou });
        return button(pair, element("span", { className: "name" }, pair.name), bar, element("span", { className: "figure" }, pair.iou.toFixed(2)));
      }),
    );
  }

  // --- what is around the pictures

  #outline() {
    const outlines = [];
    if (this.showAtoms.checked) for (const ids of this.scan.layers) outlines.push({ ids, color: "rgba(255, 255, 255, 0.45)", width: 1 });
    if (this.showLabels.checked) this.scan.labels.forEach(({ values }, map) => outlines.push({ ids: values, color: this.predicted.has(map) ? "white" : css(this.settings.label), width: 1.5 }));
    this.viewer.setOutlines(outlines);
  }

  #fillLevels() {
    const { levels, level } = this.scan.about;
    this.levelBox.hidden = levels.length < 2;
    this.levels.replaceChildren(...levels.map((shape, k) => element("option", { value: String(k), selected: k === level }, shape.join(" × "))));
  }

  #fillSources() {
    const names = [...new Set(this.scan.about.sources)].sort();
    this.sources.replaceChildren(element("option", { value: "" }, "every source"), ...names.map((name) => element("option", { value: name }, name)));
  }

  #key(event) {
    const step = KEYS[event.key];
    if (!this.scan || (!step && !"[]al".includes(event.key))) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // NiiVue has shortcuts of its own.
    if (step) {
      const point = this.viewer.point.map((v, axis) => Math.min(Math.max(v + step[axis], 0), this.scan.shape[axis] - 1));
      this.viewer.moveTo(point);
      this.#moved(point);
    } else if (event.key === "a") this.showAtoms.click();
    else if (event.key === "l") this.showLabels.click();
    else if (this.mode === "ladder") {
      this.slider.value = String(Number(this.slider.value) + (event.key === "]" ? 1 : -1));
      this.#stepped();
    }
  }

  #build(box) {
    this.stage = element("div", { className: "stage", onkeydown: null });
    this.stage.addEventListener("keydown", (event) => this.#key(event), { capture: true });
    this.title = element("h3", { className: "opened" });
    this.subtitle = element("p", { className: "quiet" });
    this.reasons = element("p", { className: "reasons" });
    this.status = element("p", { className: "status", role: "status" });
    this.readout = element("p", { className: "readout" });
    this.facts = element("dl", { className: "facts" });
    const help = "Click in a plane to move the cross; drag in the 3D picture to turn it; wheel or pinch for slices. Keys in the picture: arrows and Page Up / Down move the cross, [ and ] go to a smaller or larger region, a and l switch outlines.";
    this.controls = element("div", { className: "controls" }, this.title, this.subtitle, this.reasons, this.status, this.#buildModes(), this.readout, this.#buildDisplay(), element("p", { className: "note" }, help), element("details", {}, element("summary", {}, "About this scan"), this.facts));
    this.root = element("div", { className: "explorer empty" }, this.stage, this.controls);
    box.replaceChildren(this.root);
  }

  #buildModes() {
    this.slider = element("input", { type: "range", min: "0", step: "1", id: "ladder", oninput: () => this.#stepped() });
    this.rung = element("p", { className: "rung" });
    this.sizes = element("select", { onchange: () => this.#choose() }, ...this.settings.sizes.map(([name, low, high], k) => element("option", { value: `${low} ${high ?? "Infinity"}`, selected: k === FIRST_SIZE }, name)), element("option", { value: "0 Infinity" }, "every size"));
    this.sources = element("select", { onchange: () => this.#choose() });
    this.list = element("ul", { className: "chosen" });
    this.pairs = element("ul", { className: "pairs" });
    this.legend = element("div", { className: "legend" });
    const bodies = {
      ladder: [element("label", { htmlFor: "ladder" }, "Regions that contain the voxel at the cross, from its atom to the largest"), this.slider, this.rung],
      proposals: [element("p", { className: "fields" }, element("label", {}, "Size ", this.sizes), element("label", {}, "Source ", this.sources)), element("p", { className: "note" }, `The best-ranked ones that do not overlap, at most ${MOST_SHOWN}.`), this.list],
      labels: [this.legend, element("p", { className: "note" }, "Structures with their best match, the worst first. Number: IoU."), this.pairs],
    };
    this.tabs = {};
    this.panels = {};
    const tablist = element("div", { className: "tabs", role: "tablist", aria: { label: "What is shown" } });
    const panels = Object.entries(MODES).map(([mode, name]) => {
      this.tabs[mode] = element("button", { type: "button", role: "tab", id: `tab-${mode}`, aria: { controls: `panel-${mode}` }, onclick: () => this.setMode(mode) }, name);
      this.panels[mode] = element("div", { className: "panel", role: "tabpanel", id: `panel-${mode}`, aria: { labelledby: `tab-${mode}` } }, ...bodies[mode]);
      return this.panels[mode];
    });
    tablist.append(...Object.values(this.tabs));
    tablist.addEventListener("keydown", ({ key }) => {
      const shown = Object.keys(this.tabs).filter((mode) => !this.tabs[mode].hidden);
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const next = shown[(shown.indexOf(this.mode) + step + shown.length) % shown.length];
      this.setMode(next);
      this.tabs[next].focus();
    });
    return element("div", {}, tablist, ...panels);
  }

  #buildDisplay() {
    const check = (name, checked, onchange) => element("input", { type: "checkbox", name, checked, onchange });
    this.showAtoms = check("atoms", false, () => this.#outline());
    this.showLabels = check("labels", true, () => this.#outline());
    const cross = check("cross", true, () => this.viewer.setCross(cross.checked));
    const layout = element("select", { name: "layout", onchange: () => this.viewer.setLayout(layout.value) }, ...Object.entries(LAYOUTS).map(([value, name]) => element("option", { value }, name)));
    const opacity = element("input", { type: "range", min: "0", max: "1", step: "0.05", value: "0.5", name: "opacity", oninput: () => this.viewer.setOpacity(Number(opacity.value)) });
    this.levels = element("select", { name: "level", onchange: () => this.open(this.scan.about.scan_id, Number(this.levels.value)) });
    this.levelBox = element("label", {}, "Voxels ", this.levels);
    return element("p", { className: "fields" }, element("label", {}, "View ", layout), this.levelBox, element("label", {}, "Colour ", opacity), element("label", {}, this.showAtoms, " outlines of atoms"), element("label", {}, this.showLabels, " outlines of labels"), element("label", {}, cross, " cross"));
  }
}
