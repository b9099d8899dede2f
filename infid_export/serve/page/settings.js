// The fields of the form: filling them with the folder's defaults, reading them, and restoring them.
import { Problem } from "./errors.js";

const STRENGTHS = ["style_strength", "identity_strength"];
const DECIDED = ["prompt", "negative_prompt", "steps", "guidance", "sampler", "width", "height"]; // by a template
const FIELDS = [...DECIDED, ...STRENGTHS, "seed"];
const field = (name) => document.getElementById(name);
let folder = null; // the answer of /v1/settings

/** Fill the form with what the folder allows and its defaults. */
export function init(settings) {
  folder = settings;
  field("sampler").replaceChildren(...settings.samplers.map((name) => new Option(name, name)));
  field("steps").max = settings.limits.steps;
  initSize(settings.size);
  field("style_strength").closest(".field").hidden = settings.streams === "one"; // it would have no effect
  for (const name of STRENGTHS) field(name).addEventListener("input", showStrengths);
  field("reset").addEventListener("click", () => restore(defaults()));
  restore({ ...defaults(), prompt: field("prompt").value, negative_prompt: settings.defaults.negative_prompt ?? "" });
}

function initSize({ height, width }) {
  const free = height[0] !== height[1] || width[0] !== width[1];
  field("size").classList.toggle("fixed", !free);
  for (const [name, [least, most]] of Object.entries({ height, width })) {
    field(name).min = least;
    field(name).max = most;
    field(name).readOnly = least === most;
  }
  const range = ([least, most]) => (least === most ? `${least}` : `${least} to ${most}`);
  field("size-range").textContent = free
    ? `Width ${range(width)}, height ${range(height)}.`
    : `${width[0]} × ${height[0]}, fixed when the folder was built.`;
}

/** The folder's defaults of everything but the prompts. */
function defaults() {
  const { steps, guidance, style_strength, identity_strength, sampler } = folder.defaults;
  const [width, height] = folder.size.default.split("x");
  return { steps, guidance, style_strength, identity_strength, sampler, width, height, seed: "" };
}

/** Write values into the fields of the same names. */
export function restore(values) {
  for (const name of FIELDS) if (name in values) field(name).value = values[name] ?? "";
  showStrengths();
}

/** What stands in the fields, as text. */
export function typed() {
  return Object.fromEntries(FIELDS.map((name) => [name, field(name).value]));
}

function showStrengths() {
  for (const output of document.querySelectorAll(".sliders output")) {
    output.value = Number(field(output.htmlFor.value).value).toFixed(2);
  }
}

/** Disable what a template decides; null frees it. */
export function follow(template) {
  for (const name of DECIDED) field(name).disabled = Boolean(template);
  field("seed").placeholder = template ? String(template.seed) : "random";
  field("seed-hint").textContent = template ? "Empty is the template’s." : "Empty is random.";
}

/** The fields of a request for an image from the prompt. */
export function fromPrompt() {
  return { ...streamFields(), ...strengths() };
}

/** The fields of a request for an image from a template, which decides the rest. */
export function fromTemplate(id) {
  return defined({ template: id, seed: seed(), ...strengths() });
}

/** The fields that a template is made from: those of the text stream. */
export function streamFields() {
  const prompt = field("prompt").value.trim();
  if (!prompt) throw new Problem("The prompt is empty.", { fix: "Say what the image should show.", param: "prompt" });
  return defined({
    prompt,
    negative_prompt: field("negative_prompt").value.trim() || (folder.defaults.negative_prompt ? "" : undefined),
    steps: number("steps", "The number of steps"),
    guidance: number("guidance", "The guidance"),
    seed: seed(),
    sampler: field("sampler").value,
    size: `${number("width", "The width", "size")}x${number("height", "The height", "size")}`,
  });
}

function strengths() {
  return Object.fromEntries(STRENGTHS.map((name) => [name, Number(field(name).value)]));
}

/** A number field; ranges are the server's to check. */
function number(name, what, param = name) {
  const { value } = field(name); // empty as well for what is not a number
  if (value === "") throw new Problem(`${what} is not a number.`, { fix: "Give a number.", param });
  return Number(value);
}

/** The seed; undefined lets the server choose. JavaScript would round numbers beyond 2**53. */
function seed() {
  const text = field("seed").value.trim();
  if (text === "") return undefined;
  if (/^\d+$/.test(text) && Number.isSafeInteger(Number(text))) return Number(text);
  const fix = `Give a whole number from 0 to ${Number.MAX_SAFE_INTEGER}, or leave it empty.`;
  throw new Problem("The seed cannot be used.", { fix, param: "seed" });
}

function defined(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}
