// What the page knows: JSON in its script elements, and packs of arrays, in the page or from `mass inspect --serve`.
//
// A pack is a gzip stream: a little-endian uint32 n, n bytes of JSON, and arrays at the offsets that the JSON names
// (counted from the end of the JSON). See pipeline/report/packs.py, which writes it.

const TYPES = {
  uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array,
};

/** Return the value of a JSON script element, null where there is none. */
export function readJson(id) {
  const found = document.getElementById(id);
  return found ? JSON.parse(found.textContent) : null;
}

/** Return the bytes of a base64 text. */
export function fromBase64(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Return what a gzip stream holds. */
export async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return the header of a pack, and its arrays by name: { header, arrays: { name: { values, shape } } }. */
export function parsePack(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const arrays = {};
  for (const [name, { dtype, shape, offset }] of Object.entries(header.arrays)) {
    const size = shape.reduce((product, n) => product * n, 1);
    const start = 4 + length + offset;
    // A copy: a view must start at a multiple of its element's size.
    const part = bytes.slice(start, start + size * TYPES[dtype].BYTES_PER_ELEMENT);
    arrays[name] = { values: new TYPES[dtype](part.buffer), shape };
  }
  return { header, arrays };
}

/** Wait until the whole page is there: the table starts before the packs behind it have come. */
export async function wholePage() {
  if (document.readyState === "loading") await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
}

/** Where packs come from: the page itself, or the server that gave the page. */
export class Packs {
  /** Args: whether a server gives them; ids of the scans that the page carries. */
  constructor(served, packed) {
    this.served = served;
    this.inPage = new Set(packed);
  }

  /** Whether a scan can be opened. */
  has(scanId) {
    return this.served || this.inPage.has(scanId);
  }

  /** Return the pack of a scan; a level of it where there is a server. */
  async load(scanId, level = null) {
    return parsePack(await gunzip(await this.#bytes(scanId, level)));
  }

  async #bytes(scanId, level) {
    if (!this.served) {
      await wholePage();
      const scripts = [...document.querySelectorAll("script.pack")];
      return fromBase64(scripts.find((script) => script.dataset.scan === scanId).textContent);
    }
    const query = new URLSearchParams({ id: scanId, ...(level === null ? {} : { level }) });
    const answer = await fetch(`pack?${query}`);
    if (!answer.ok) throw new Error(`${scanId}: ${await answer.text()}`);
    return new Uint8Array(await answer.arrayBuffer());
  }
}
