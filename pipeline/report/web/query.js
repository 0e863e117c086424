// Search in the table of scans: words, and comparisons such as iou<0.3 or modality=ct, all of which must hold.

const COMPARISON = /^([a-z]+)(<=|>=|=|<|>)(.+)$/i;

const TESTS = {
  "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b,
};

/** Return a function that tells whether a row passes a search. Args: the text; columns [{ key, value, words }]. */
export function parseQuery(text, columns) {
  const tests = text.trim().split(/\s+/).filter(Boolean).map((word) => parseWord(word, columns));
  return (row) => tests.every((test) => test(row));
}

function parseWord(word, columns) {
  const [, key, operator, wanted] = COMPARISON.exec(word) ?? [];
  const column = columns.find((one) => one.key === key?.toLowerCase());
  if (column?.numeric && !Number.isNaN(Number(wanted))) {
    const limit = Number(wanted);
    return (row) => {
      const value = column.value(row);
      return value !== null && TESTS[operator](value, limit);
    };
  }
  if (column && operator === "=") {
    const name = wanted.toLowerCase();
    return (row) => String(column.value(row)).toLowerCase() === name;
  }
  const lower = word.toLowerCase();
  return (row) => columns.some((one) => one.words?.(row).toLowerCase().includes(lower));
}

/** Return rows sorted by a column; rows without a value come last, equal ones keep their order. */
export function sortRows(rows, column, descending) {
  const sign = descending ? -1 : 1;
  const compare = column.numeric ? (a, b) => a - b : new Intl.Collator("en", { numeric: true }).compare;
  const keyed = rows.map((row) => ({ row, key: column.value(row) }));
  const missing = (key) => key === null || key === "";
  return keyed
    .sort((a, b) => missing(a.key) - missing(b.key) || (missing(a.key) ? 0 : sign * compare(a.key, b.key)))
    .map(({ row }) => row);
}
