// Starts what a page has: the table of scans, and the viewer.

import { element } from "mass3d/dom.js";
import { Packs, readJson } from "mass3d/data.js";
import { Explorer } from "mass3d/explorer.js";
import { ScanTable } from "mass3d/table.js";

const settings = readJson("settings");
const packs = new Packs(settings.served, settings.packed);
const viewerBox = document.getElementById("explorer");
const tableBox = document.getElementById("scan-table");
const note = document.getElementById("viewer-note");

const rows = tableBox ? readJson("rows") : [];
const unusual = new Map(rows.map((row) => [row[0], row[13]]));

let explorer = null;

/** Show a scan in the viewer. */
async function open(scanId, scroll = true) {
  if (!packs.has(scanId)) {
    note.textContent = `${scanId} is not in this page: run mass inspect STORE --serve, or mass inspect STORE --scan ${scanId} --out scan.html`;
  } else {
    explorer ??= new Explorer(viewerBox, packs, settings);
    explorer.unusual = unusual;
    if (settings.served) note.textContent = "";
  }
  if (scroll) document.getElementById("viewer").scrollIntoView({ behavior: "instant" });
  if (packs.has(scanId)) await explorer.open(scanId);
}

for (const link of document.querySelectorAll("a.open"))
  link.addEventListener("click", (event) => {
    event.preventDefault();
    open(link.dataset.scan);
  });

if (tableBox) new ScanTable(tableBox, rows, open, (scanId) => packs.has(scanId));

// The first scan that the page carries opens when the viewer comes into sight.
const [first] = packs.inPage;
if (first && viewerBox)
  new IntersectionObserver((entries, observer) => {
    if (explorer || !entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    open(first, false);
  }).observe(viewerBox);

/** Tell how many scans a server has read, and show the whole overview when it has read all. */
async function follow(notice) {
  const { done, total } = await (await fetch("progress")).json();
  notice.textContent = `Scans are being read: ${done.toLocaleString("en-US")} of ${total.toLocaleString("en-US")}. Sizes, sources and unusual scans follow.`;
  if (done < total) setTimeout(() => follow(notice), 1500);
  else if (!explorer) location.reload();
  else notice.replaceChildren("All scans are read. ", element("button", { type: "button", onclick: () => location.reload() }, "Show the whole overview"));
}

const notice = document.querySelector(".notice");
if (settings.served && notice) follow(notice);
