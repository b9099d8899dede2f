// Elements made in scripts, and the URLs of images in memory.

/** Make an element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Make a button that runs `act`. `label` is read instead of `text` where the text alone is not enough. */
export function button(text, act, { className = "link", label } = {}) {
  const made = make("button", { type: "button", className, textContent: text });
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

/** Keeps one URL per key and revokes it with the key, so that images leave the memory. */
export class ImageUrls {
  #urls = new Map();

  set(key, blob) {
    this.drop(key);
    const url = URL.createObjectURL(blob);
    this.#urls.set(key, url);
    return url;
  }

  get(key) {
    return this.#urls.get(key);
  }

  drop(key) {
    if (this.#urls.has(key)) URL.revokeObjectURL(this.#urls.get(key));
    this.#urls.delete(key);
  }
}
