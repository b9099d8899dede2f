// The images of this tab, newest first. Nothing of it is stored.
import { button, ImageUrls, make } from "./elements.js";
import * as stage from "./stage.js";

const list = document.getElementById("history");
const urls = new ImageUrls();
let items = [];
let useAgain = () => {};

/** Set the function that fills the form with an image's settings. */
export function onUseAgain(use) {
  useAgain = use;
}

/** Add an image and show it. `values` are the settings it was made with, `facts` a line about them. */
export function add({ blob, prompt, seed, facts, values }) {
  const item = { prompt, facts, values, fileName: fileName(prompt, seed, blob.type) };
  item.url = urls.set(item, blob);
  item.row = row(item);
  items.unshift(item);
  list.prepend(item.row);
  stage.endPreview(item);
}

function row(item) {
  const thumb = make("button", { type: "button", className: "thumb" }, make("img", { src: item.url, alt: "" }));
  thumb.setAttribute("aria-label", `Show the image: ${item.prompt}, ${item.facts}`);
  thumb.addEventListener("click", () => stage.show(item));
  const download = make("a", { className: "link", href: item.url, download: item.fileName, textContent: "Download" });
  const text = make(
    "div",
    { className: "grow" },
    make("p", { className: "clamped", textContent: item.prompt, title: item.prompt }),
    make("p", { className: "hint", textContent: item.facts }),
    make("div", { className: "links" },
      button("Use these settings again", () => useAgain(item.values)),
      download,
      button("Remove", () => remove(item), { label: `Remove the image: ${item.prompt}` })),
  );
  return make("li", {}, thumb, text);
}

function remove(item) {
  const next = item.row.nextElementSibling ?? item.row.previousElementSibling;
  (next?.querySelector("button") ?? document.getElementById("history-title")).focus();
  items = items.filter((other) => other !== item);
  item.row.remove();
  if (stage.isShown(item)) stage.show(items[0] ?? null);
  urls.drop(item);
}

/** A file name that says what the image shows: `a-pencil-sketch-of-a-person-42.png`. */
export function fileName(prompt, seed, type) {
  const words = prompt.normalize("NFKD").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  const short = words.slice(0, 60).replace(/^-+|-+$/g, "");
  return `${short || "image"}-${seed}.${type.split("/")[1].replace("jpeg", "jpg")}`;
}
