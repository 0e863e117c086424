// Elements of the page. Text goes in as text, never as markup, so that names from files stay names.

/** Return an element. Properties are set as they are; `data` and `aria` are objects of attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name === "aria") for (const [key, text] of Object.entries(value)) made.setAttribute(`aria-${key}`, text);
    else if (name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return a number for people: 12,345; 0.0123; an empty text for a missing one. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

/** Return a fraction as a percentage. */
export const percent = (value) => (value === null || value === undefined ? "" : `${(100 * value).toFixed(1)}%`);

/** Return a volume: "1.20 L", "34.5 mL". */
export const volume = (ml) => (ml >= 1000 ? `${(ml / 1000).toFixed(2)} L` : `${Number(ml.toPrecision(3))} mL`);
