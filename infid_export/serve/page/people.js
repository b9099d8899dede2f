// The people: enrolling photos, choosing who the image shows, erasing.
import { call } from "./api.js";
import { confirmed } from "./dialogs.js";
import { button, ImageUrls, make } from "./elements.js";
import { clear, Problem, show } from "./errors.js";
import { drawFaces } from "./faces.js";
import * as job from "./job.js";
import { imageBlob } from "./stream.js";

const byId = (id) => document.getElementById(id);
const PLACE = "person-error";
const crops = new ImageUrls(); // the aligned face of each photo, by person and number of the photo
const enrolled = new Map(); // photos, name and faces of the people of this tab, by id
let people = [];
let chosenIds = [];
const replaced = new Map(); // the id that a person got when photos or a name were changed, by the old one
let limits = {};
let slots = 1;
let busy = false;

/** Show what the folder can do with people, and who is enrolled. */
export async function init(settings) {
  ({ slots, limits } = settings);
  byId("drawn").hidden = !settings.drawn_faces_only;
  byId("people-kept").textContent = settings.people.stored
    ? "The server stores them until they are erased."
    : "The server keeps them in memory, until it stops.";
  if (slots > 1) byId("people-legend").textContent = `Enrolled people (up to ${slots} in one image)`;
  listen();
  await refresh();
  if (people.length === 1) choose([people[0].id]);
}

function listen() {
  byId("photos").addEventListener("change", (event) => take(event.target, enrollNew));
  byId("more-photos").addEventListener("change", (event) => take(event.target, addPhotos));
  byId("name").addEventListener("change", (event) => again({ name: event.target.value.trim() }));
  for (const drawn of document.querySelectorAll("[data-drawn]")) {
    drawn.addEventListener("click", () => enrollDrawn(drawn.dataset.drawn));
  }
}

/** Hand over the files of an input and empty it, so that the same file can be chosen again. */
function take(input, use) {
  const files = [...input.files];
  input.value = "";
  if (files.length) use(files);
}

async function refresh() {
  try {
    people = (await call("/v1/people")).data;
    choose(chosenIds);
  } catch (error) {
    show(error, PLACE);
  }
}

/** The ids of the people that the next image shows. */
export const chosen = () => [...chosenIds];

/** Choose people by id; those that no longer exist are left out. */
export function choose(ids) {
  chosenIds = ids.filter((id) => people.some((person) => person.id === id)).slice(-slots);
  draw();
}

/** Choose the people of an earlier image, as far as they still exist. */
export function chooseAgain(ids) {
  const newest = (id) => (replaced.has(id) ? newest(replaced.get(id)) : id);
  const known = ids.map(newest).filter((id) => people.some((person) => person.id === id));
  if (known.length) choose(known);
}

/** The fields of a request that name the people. */
export function requested() {
  const fix = "Add a photo, or choose an enrolled person.";
  if (!chosenIds.length) throw new Problem("No person is chosen.", { fix, param: "person" });
  return chosenIds.length === 1 ? { person: chosenIds[0] } : { people: chosen() };
}

/** The names of the people chosen, for the history. */
export const names = () => chosenIds.map((id) => nameOf(people.find((person) => person.id === id))).join(", ");

const nameOf = (person) => person.name || "unnamed";

/** Enroll a new person from photos; the name of the first file is a name to start with. */
export function enrollNew(files) {
  return enroll({ files, name: files[0].name.replace(/\.[^.]*$/, "").slice(0, 100) });
}

async function enrollDrawn(number) {
  const answer = await fetch(`/page/drawn-${number}.png`).catch(() => null);
  const problem = new Problem("The drawn person could not be loaded.", { fix: "Reload the page." });
  if (!answer?.ok) return show(problem, PLACE);
  await enrollNew([new File([await answer.blob()], `Drawn person ${number}.png`, { type: "image/png" })]);
}

/** Average more photos into a person. A face index would count for the new photos too. */
function addPhotos(files) {
  const { files: own, face } = enrolled.get(chosenIds[0]);
  const fix = "Add all photos of this person together instead.";
  if (face) return show(new Problem("No photo can be added once another face was chosen.", { fix }), PLACE);
  return again({ files: [...own, ...files] });
}

/** Enroll the person shown once more with something changed. An enrolled person itself never changes. */
async function again(change) {
  const [old] = chosenIds;
  const fix = "Wait until it is done, or cancel it."; // erasing a person stops their images
  if (job.isRunning()) show(new Problem("A person cannot be changed while an image is drawn.", { fix }), PLACE);
  const made = job.isRunning() ? null : await enroll({ ...enrolled.get(old), ...change });
  if (!made) return drawDetails(); // undoes what the fields show
  if (!("face" in change)) replaced.set(old, made); // another face is somebody else
  await erase(old).then(() => forget(old), (error) => show(error, PLACE));
}

/** Send photos, then show and choose the person. Returns the id; null after an error. */
async function enroll({ files, name, face }) {
  if (busy) return null;
  busy = true;
  clear(PLACE);
  const what = files.length > 1 ? `faces of ${files.length} photos` : "face";
  byId("reading").textContent = `Finding the ${what} …`;
  try {
    check(files);
    const { faces, ...person } = await call("/v1/people", { method: "POST", form: formOf(files, name, face) });
    faces.forEach(({ crop }, index) => crops.set(`${person.id}/${index}`, imageBlob(crop)));
    enrolled.set(person.id, { files, name, face, faces: faces.map(({ crop, ...found }) => found) });
    people.unshift(person); // the newest first, as the server lists them
    choose([person.id]);
    return person.id;
  } catch (error) {
    show(error, PLACE);
    return null;
  } finally {
    busy = false;
    byId("reading").textContent = "";
  }
}

/** A server closes the connection on an upload that is too large, so that its answer may not arrive. */
function check(files) {
  const most = `Add at most ${limits.photos} of one person.`;
  if (files.length > limits.photos) throw new Problem(`${files.length} photos are too many.`, { fix: most });
  const bytes = files.reduce((sum, { size }) => sum + size, 0);
  const fix = `Use smaller photos: at most ${Math.floor(limits.bytes / 1e6)} MB together.`;
  if (bytes > limits.bytes - 10_000) throw new Problem(`The photos have ${Math.ceil(bytes / 1e6)} MB.`, { fix });
}

function formOf(files, name, face) {
  const form = new FormData();
  for (const file of files) form.append(files.length > 1 ? "image[]" : "image", file, file.name);
  if (name) form.append("name", name);
  if (face !== undefined) form.append("face_index", face);
  return form;
}

async function erase(id) {
  await call(`/v1/people/${id}`, { method: "DELETE" }).catch((error) => {
    if (error.status !== 404) throw error; // 404: already erased
  });
  enrolled.get(id)?.files.forEach((_, index) => crops.drop(`${id}/${index}`));
  enrolled.delete(id);
}

function forget(id) {
  people = people.filter((person) => person.id !== id);
  choose(chosenIds);
}

async function askAndErase(person) {
  const text = "The server deletes what it knows of this face. Images in the history stay.";
  if (!(await confirmed(`Erase ${nameOf(person)}?`, text, "Erase"))) return;
  clear(PLACE);
  try {
    await erase(person.id);
  } catch (error) {
    show(error, PLACE);
    return;
  }
  forget(person.id);
  byId("person-title").focus();
}

function draw() {
  const focused = document.activeElement?.closest("#people input")?.value;
  byId("people-group").hidden = people.length === 0;
  byId("people").replaceChildren(...people.map(row));
  if (focused) byId("people").querySelector(`[value="${CSS.escape(focused)}"]`)?.focus();
  drawDetails();
}

function row(person) {
  const input = make("input", { type: slots > 1 ? "checkbox" : "radio", name: "person", value: person.id });
  input.checked = chosenIds.includes(person.id);
  input.addEventListener("change", () => {
    const others = slots > 1 ? chosenIds.filter((id) => id !== person.id) : [];
    choose(input.checked ? [...others, person.id] : others);
  });
  const url = crops.get(`${person.id}/0`);
  const initial = () => make("span", { className: "initial", textContent: nameOf(person)[0].toUpperCase() });
  const face = url ? make("img", { src: url, alt: "" }) : initial();
  face.setAttribute("aria-hidden", "true");
  const added = new Date(person.created_at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const lines = [
    make("span", { className: "clamped one", textContent: nameOf(person) }),
    make("span", { className: "hint", textContent: added }),
  ];
  const text = make("span", { className: "grow" }, ...lines);
  const label = make("label", { className: "grow" }, input, face, text);
  return make("li", {}, label, button("Erase", () => askAndErase(person), { label: `Erase ${nameOf(person)}` }));
}

/** The photos and faces of the person chosen, if they were enrolled in this tab; whole images have no faces. */
function drawDetails() {
  const details = chosenIds.length === 1 ? enrolled.get(chosenIds[0]) : undefined;
  byId("faces").hidden = !details?.faces.length;
  if (!details?.faces.length) return;
  byId("name").value = details.name;
  byId("faces-title").textContent = details.faces.length > 1 ? "Faces found" : "Face found";
  const url = (index) => crops.get(`${chosenIds[0]}/${index}`);
  const without = (index) => again({ files: details.files.filter((_, other) => other !== index) });
  drawFaces(byId("face-list"), details, { url, without, use: (face) => again({ face }) });
}
