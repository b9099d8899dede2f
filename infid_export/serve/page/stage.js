// The large image: a preview while it is drawn, or one image of the history.
const byId = (id) => document.getElementById(id);
let shown = null; // the image of the history that is on the stage
let previewUrl = null;

/** Show a blob in place of the image until `show` or `endPreview`. */
export function preview(blob) {
  const last = previewUrl;
  previewUrl = URL.createObjectURL(blob);
  draw(previewUrl, "Preview of the image that is being drawn");
  byId("caption").hidden = true;
  if (last) URL.revokeObjectURL(last);
}

/** End the preview with the image that was drawn, or with the one that was shown before. */
export function endPreview(item = shown) {
  const last = previewUrl;
  previewUrl = null;
  show(item);
  if (last) URL.revokeObjectURL(last);
}

/** Show an image of the history; null empties the stage. */
export function show(item) {
  shown = item;
  if (previewUrl) return; // it comes back when the preview ends
  byId("caption").hidden = !item;
  if (!item) {
    byId("image").removeAttribute("src");
    byId("image").hidden = true;
    byId("empty").hidden = false;
    return;
  }
  draw(item.url, item.prompt);
  byId("caption-text").textContent = item.facts;
  byId("download").href = item.url;
  byId("download").download = item.fileName;
}

export const isShown = (item) => shown === item;

function draw(url, text) {
  const image = byId("image");
  image.src = url;
  image.alt = text;
  image.hidden = false;
  byId("empty").hidden = true;
}
