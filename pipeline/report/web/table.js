// The table of scans: sorted, filtered, searched, and virtual: only the rows in sight are elements.

import { element, number, percent } from "mass3d/dom.js";
import { parseQuery, sortRows } from "mass3d/query.js";

const LONG = 40; // Letters from which a cell is set in three small lines.
const MARGIN = 8; // Rows drawn above and below those in sight.

// Values in the order in which pipeline/report/store_page.py writes them.
const at = (k) => (row) => row[k];
const text = (k) => ({ value: at(k), words: at(k), show: at(k) });
const figure = (k, show = number) => ({ numeric: true, value: at(k), show: (row) => show(row[k]) });
export const COLUMNS = [
  { key: "scan", name: "scan", ...text(0) },
  { key: "dataset", name: "data set", ...text(1) },
  { key: "modality", name: "modality", ...text(2) },
  { key: "split", name: "split", ...text(3) },
  { key: "size", name: "size (mm)", numeric: true, value: (row) => row[4].reduce((p, mm) => p * mm, 1) / 1e6, show: (row) => row[4].join(" × ") },
  { key: "voxel", name: "file's voxel (mm)", ...figure(5) },
  { key: "proposals", name: "proposals", ...figure(6) },
  { key: "atoms", name: "atoms", ...figure(7) },
  { key: "covered", name: "covered", ...figure(8, percent) },
  { key: "outside", name: "outside", ...figure(9, percent) },
  { key: "structures", name: "struc­tures", ...figure(10) },
  { key: "iou", name: "best IoU", ...figure(11, (iou) => (iou === null ? "" : iou.toFixed(3))) },
  { key: "mb", name: "MB", ...figure(12, (mb) => (mb === null ? "" : mb.toFixed(1))) },
  { key: "seconds", name: "time (s)", ...figure(14) },
  { key: "unusual", name: "unusual", value: at(13), words: (row) => (row[13] ? `unusual ${row[13]}` : ""), show: (row) => kinds(row[13]) },
];

/** Return what of a scan is unusual, without the values: they are in the viewer, and seen when the pointer rests. */
function kinds(reasons) {
  return reasons.split("; ").map((reason) => reason.split(": ")[0]).join(", ");
}

export class ScanTable {
  /** Args: box to fill; rows; called with the id of a scan that is opened; tells whether a scan can be opened. */
  constructor(box, rows, onOpen, canOpen) {
    this.all = rows;
    this.onOpen = onOpen;
    this.canOpen = canOpen;
    // Columns without any value are left out.
    this.columns = COLUMNS.filter((column) => rows.some((row) => ![null, ""].includes(column.value(row))));
    this.sorting = null;
    this.active = 0;
    this.box = box;
    this.#build(box);
    this.#select();
    this.#fit();
    new ResizeObserver(() => this.#fit()).observe(this.body);
  }

  #build(box) {
    this.search = element("input", { type: "search", placeholder: "search, or iou<0.3", oninput: () => this.#select(), aria: { label: "Search scans" } });
    this.filters = ["dataset", "modality", "split"].flatMap((key) => {
      const column = this.columns.find((one) => one.key === key);
      const names = column ? [...new Set(this.all.map(column.value))].filter(Boolean).sort() : [];
      if (names.length < 2) return [];
      const box = element("select", { name: key, onchange: () => this.#select(), aria: { label: column.name } }, element("option", { value: "" }, `every ${column.name}`), ...names.map((name) => element("option", { value: name }, name)));
      return [{ column, box }];
    });
    this.only = element("input", { type: "checkbox", name: "unusual", onchange: () => this.#select() });
    const hasUnusual = this.columns.some((column) => column.key === "unusual");
    this.count = element("span", { className: "quiet", role: "status" });
    this.head = element("div", { className: "tr head", role: "row" }, ...this.columns.map((column) => this.#heading(column)));
    this.spacer = element("div", { className: "spacer", role: "rowgroup" });
    this.body = element("div", { className: "vtable", role: "table", tabIndex: 0, aria: { label: "Scans", rowcount: this.all.length + 1 } }, this.head, this.spacer);
    const widths = this.columns.map((column) => this.#width(column));
    this.least = widths.reduce((sum, [least]) => sum + least, 2);
    this.body.style.setProperty("--columns", widths.map(([least, share]) => (share ? `minmax(${least}px, ${share}fr)` : `${least}px`)).join(" "));
    this.body.addEventListener("scroll", () => this.#draw(), { passive: true });
    this.body.addEventListener("keydown", (event) => this.#key(event));
    // For narrow windows, where the headings are not seen.
    this.order = element("select", { name: "order", aria: { label: "Sort by" }, onchange: () => this.#sortBy(this.columns[this.order.value], this.columns[this.order.value].numeric) }, ...this.columns.map((column, k) => element("option", { value: String(k) }, `sort by ${column.name.replace("­", "")}`)));
    box.replaceChildren(
      element("div", { className: "fields tools" }, this.search, ...this.filters.map(({ box }) => box), this.order, hasUnusual ? element("label", {}, this.only, " only unusual") : null, this.count),
      this.body,
    );
  }

  #heading(column) {
    const button = element("button", { type: "button", onclick: () => this.#sortBy(column, this.sorting?.column === column ? !this.sorting.descending : false) }, column.name);
    return (column.head = element("div", { role: "columnheader", className: column.numeric ? "figure" : "" }, button));
  }

  /** Return least width and share of a column: a data set's name is not broken, unless it is very long. */
  #width(column) {
    if (column.key !== "dataset") return WIDTHS[column.key];
    const longest = this.all.reduce((most, row) => Math.max(most, row[1].length), 0);
    return [Math.min(Math.max(longest, 8), 18) * 9 + 20, 1];
  }

  /** Where a window is too narrow for all columns, each scan is a card. */
  #fit() {
    this.box.classList.toggle("as-cards", this.box.clientWidth < this.least);
    this.#draw(true);
  }

  #sortBy(column, descending) {
    this.sorting = { column, descending };
    for (const one of this.columns) one.head.removeAttribute("aria-sort");
    column.head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    this.order.value = String(this.columns.indexOf(column));
    this.#select();
  }

  /** Apply search, filters and order. */
  #select() {
    const passes = parseQuery(this.search.value, this.columns);
    const chosen = this.filters.filter(({ box }) => box.value);
    this.rows = this.all.filter((row) => passes(row) && chosen.every(({ column, box }) => column.value(row) === box.value) && (!this.only.checked || row[13]));
    if (this.sorting) this.rows = sortRows(this.rows, this.sorting.column, this.sorting.descending);
    this.count.textContent = this.rows.length === this.all.length ? `${number(this.all.length)} scans` : `${number(this.rows.length)} of ${number(this.all.length)} scans`;
    this.active = 0;
    this.body.scrollTop = 0;
    this.#draw(true);
  }

  #draw(anew = false) {
    const height = this.rowHeight();
    const first = Math.max(0, Math.floor(this.body.scrollTop / height) - MARGIN);
    const last = Math.min(this.rows.length, Math.ceil((this.body.scrollTop + this.body.clientHeight) / height) + MARGIN);
    if (!anew && first === this.first && last === this.last) return;
    [this.first, this.last] = [first, last];
    this.spacer.style.height = `${this.rows.length * height}px`;
    this.spacer.replaceChildren(...this.rows.slice(first, last).map((row, k) => this.#row(row, first + k, height)));
  }

  #row(row, place, height) {
    const made = element("div", { className: "tr", role: "row", aria: { rowindex: place + 2, selected: place === this.active }, onclick: () => this.#open(place) }, ...this.columns.map((column) => this.#cell(column, row)));
    made.style.transform = `translateY(${place * height}px)`;
    made.classList.toggle("closed", !this.canOpen(row[0]));
    return made;
  }

  #cell(column, row) {
    const shown = String(column.show(row) ?? "");
    const kind = column.numeric ? "figure" : shown.length > LONG ? "long" : "";
    const title = column.key === "unusual" ? row[13] : shown;
    return element("div", { role: "cell", className: kind, title, data: { key: column.key, name: column.name } }, shown);
  }

  #open(place) {
    this.active = place;
    this.#draw(true);
    this.onOpen(this.rows[place][0]);
  }

  #key(event) {
    if (event.target !== this.body) return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.rowHeight()) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && this.rows.length) return this.#open(this.active);
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.active = Math.min(Math.max(this.active + steps[event.key], 0), this.rows.length - 1);
    const height = this.rowHeight(), top = this.active * height, head = this.head.offsetHeight;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    if (top + height + head > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = top + height + head - this.body.clientHeight;
    this.#draw(true);
  }

  /** Height of a row in pixels, from the style sheet: cards are higher than lines. */
  rowHeight() {
    return parseFloat(getComputedStyle(this.body).getPropertyValue("--row"));
  }
}

// Least width of a column in pixels, and its share of what is left over.
const WIDTHS = {
  scan: [150, 3], modality: [84, 0], split: [56, 0.5], size: [148, 0], voxel: [72, 0], proposals: [92, 0], atoms: [72, 0],
  covered: [80, 0], outside: [78, 0], structures: [70, 0], iou: [80, 0], mb: [62, 0], seconds: [62, 0], unusual: [170, 3],
};
