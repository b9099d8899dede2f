// The face that was found in each photo, and the choice of another one.
import { button, make } from "./elements.js";

/** Fill a list with the photos of a person. `use` chooses another face, `without` removes a photo. */
export function drawFaces(list, { files, faces }, { url, without, use }) {
  const rows = faces.map((found, index) => {
    const { name } = files[index];
    const image = make("img", { src: url(index), alt: `The aligned face of ${name}`, width: 72, height: 72 });
    const text = make("div", { className: "grow" },
      make("p", { className: "clamped one", textContent: name, title: name }),
      make("p", { className: "hint", textContent: sentence(found) }));
    if (found.found > 1) text.append(choice(files[index], found, use, canChoose(faces)));
    const remove = button("Remove this photo", () => without(index), { label: `Remove the photo ${name}` });
    if (faces.length > 1) text.append(remove);
    return make("li", {}, image, text);
  });
  list.replaceChildren(...rows);
}

/** How many faces were found, which one is used, and its score. */
function sentence({ found, taken, faces }) {
  const score = `score ${faces[taken].score.toFixed(2)}`;
  return found === 1 ? `1 face found, ${score}.` : `${found} faces found, face ${taken + 1} used, ${score}.`;
}

/** A face index counts for all photos, so another face can be chosen only while there is one photo. */
const canChoose = (faces) => faces.length === 1;

function choice(file, { taken, faces }, use, allowed) {
  if (!allowed) return make("p", { className: "hint", textContent: "To use another face, add this photo alone." });
  const group = make("div", { className: "face-choice" });
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Faces of the photo");
  const buttons = faces.map(({ score }, index) => {
    const label = `Face ${index + 1}, score ${score.toFixed(2)}`;
    const made = button(String(index + 1), () => use(index), { className: "thumb", label });
    made.setAttribute("aria-pressed", String(index === taken));
    return made;
  });
  group.append(...buttons);
  cutOut(file, faces, buttons);
  return group;
}

/** Show each face on its button. A photo that only the server can decode leaves the numbers. */
async function cutOut(file, faces, buttons) {
  const photo = await createImageBitmap(file).catch(() => null);
  if (!photo) return;
  faces.forEach(({ box: [left, top, right, bottom] }, index) => {
    const side = Math.max(right - left, bottom - top) * 1.2;
    const canvas = make("canvas", { width: 96, height: 96 });
    const [x, y] = [(left + right - side) / 2, (top + bottom - side) / 2];
    canvas.getContext("2d").drawImage(photo, x, y, side, side, 0, 0, 96, 96);
    buttons[index].replaceChildren(canvas);
  });
  photo.close();
}
