// Templates: the gallery, choosing one, making one from the prompt.
import { call, send } from "./api.js";
import { confirmed } from "./dialogs.js";
import { button, ImageUrls, make } from "./elements.js";
import { clear, show } from "./errors.js";
import * as job from "./job.js";
import * as settings from "./settings.js";

const byId = (id) => document.getElementById(id);
const PLACE = "template-error";
const previews = new ImageUrls();
let templates = [];
let chosenId = null;

/** The template that the next image is made from, or null. */
export const chosen = () => templates.find(({ id }) => id === chosenId) ?? null;

/** Show the section and fill the gallery. */
export async function init() {
  byId("templates-section").hidden = false;
  byId("make-template").addEventListener("click", makeOne);
  await refresh();
}

async function refresh() {
  try {
    templates = (await call("/v1/templates")).data;
    draw();
  } catch (error) {
    show(error, PLACE);
  }
}

/** Choose a template by its id; null, or one that no longer exists, is none. */
export function choose(id) {
  chosenId = templates.some((template) => template.id === id) ? id : null;
  const radio = byId("templates").querySelector(`[value="${CSS.escape(chosenId ?? "")}"]`);
  if (radio) radio.checked = true;
  settings.follow(chosen());
  byId("make-template").disabled = Boolean(chosen()); // its prompt is fixed already
  tell(chosen());
}

/** Say above the prompt which fields a template decides, and its values of them. */
function tell(template) {
  byId("template-note").hidden = !template;
  if (!template) return;
  const { prompt, negative_prompt, size, steps, sampler, guidance } = template;
  const negative = negative_prompt ? `, negative prompt “${negative_prompt}”` : "";
  const values = `${size.replace("x", " × ")}, ${steps} steps, ${sampler}, guidance ${guidance}`;
  byId("template-note").replaceChildren(
    `The template decides the prompt, “${prompt}”${negative}, and ${values}. Seed and strengths are free. `,
    button("Use no template", () => {
      choose(null);
      byId("prompt").focus();
    }),
  );
}

function draw() {
  byId("templates").replaceChildren(card(null), ...templates.map(card));
  choose(chosenId);
}

function card(template) {
  const value = template?.id ?? "";
  const radio = make("input", { type: "radio", name: "template", value, className: "hidden-input" });
  radio.addEventListener("change", () => choose(template?.id ?? null));
  const none = () => make("span", { className: "none", textContent: "None" });
  const face = template ? make("img", { alt: "", width: 104, height: 104 }) : none();
  const text = template ? template.prompt : "The prompt above";
  const label = make("label", {}, radio, face, make("span", { className: "clamped", textContent: text, title: text }));
  if (!template) return make("li", {}, label);
  drawPreview(template.id, face);
  const erase = button("Delete", () => remove(template), { label: `Delete the template: ${template.prompt}` });
  return make("li", {}, label, erase);
}

/** Previews are fetched by script, because an `<img>` sends no token. */
async function drawPreview(id, image) {
  try {
    image.src = previews.get(id) ?? previews.set(id, await (await send(`/v1/templates/${id}/preview`)).blob());
  } catch {
    image.alt = "no preview";
  }
}

/** Make a template from the fields of the form and choose it. */
async function makeOne() {
  if (job.isRunning()) return;
  let fields;
  try {
    fields = settings.streamFields();
  } catch (error) {
    show(error, PLACE);
    byId(error.param)?.focus();
    return;
  }
  const made = await job.run("Making a template", PLACE, ({ id, signal }) =>
    call("/v1/templates", { method: "POST", json: fields, id, signal }),
  );
  if (!made) return;
  templates.unshift(made);
  chosenId = made.id;
  draw();
}

async function remove(template) {
  const text = `“${template.prompt}” has to be computed again to use it as a template.`;
  if (!(await confirmed("Delete this template?", text, "Delete"))) return;
  clear(PLACE);
  try {
    await call(`/v1/templates/${template.id}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) return void show(error, PLACE); // 404: it is gone already
  }
  templates = templates.filter(({ id }) => id !== template.id);
  previews.drop(template.id);
  draw();
  byId("templates-title").focus();
}
