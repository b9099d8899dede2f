// From the form to an image: the request, its stream of previews, and the result.
import { problem, send } from "./api.js";
import { clear, Problem, show } from "./errors.js";
import * as history from "./history.js";
import * as job from "./job.js";
import * as people from "./people.js";
import * as settings from "./settings.js";
import * as stage from "./stage.js";
import { events, imageBlob } from "./stream.js";
import * as templates from "./templates.js";

/** Generate an image from what stands in the form. */
export async function generate() {
  if (job.isRunning()) return;
  clear();
  let request;
  try {
    request = requested();
  } catch (error) {
    show(error, "drawing-error");
    document.getElementById(error.param === "person" ? "photos" : error.param)?.focus();
    return;
  }
  const made = { ...described(request), values: remembered() };
  await job.run("Drawing", "drawing-error", (running) => draw(request, made, running));
  stage.endPreview();
}

/** The request of the form; a problem if something that only a person can give is missing. */
function requested() {
  const chosen = templates.chosen();
  const who = people.requested();
  const fields = chosen ? settings.fromTemplate(chosen.id) : settings.fromPrompt();
  return { ...who, ...fields, stream: true, partial_images: 3, progress: true, output_format: "png" };
}

async function draw(request, made, { id, signal, progress }) {
  const response = await send("/v1/images/generations", { method: "POST", json: request, id, signal });
  let images = 0;
  for await (const event of events(response)) {
    if (event.error) throw problem(event.error);
    if (event.type === "infid.progress") progress(event);
    if (event.type === "image_generation.partial_image") stage.preview(imageBlob(event.b64_json, event.output_format));
    if (event.type === "image_generation.completed") {
      finish(event, made);
      images += 1;
    }
  }
  if (!images) throw new Problem("The server ended the answer before the image was done.", { fix: "Try again." });
}

function finish({ b64_json, output_format, seed }, { prompt, facts, values }) {
  const blob = imageBlob(b64_json, output_format);
  history.add({ blob, prompt, seed, facts: `Seed ${seed} · ${facts}`, values: { ...values, seed } });
}

/** What the history says about an image, beside its seed. */
function described(request) {
  const chosen = templates.chosen();
  const { steps, guidance, sampler, size } = chosen ?? request;
  const pixels = size.replace("x", "\u00a0×\u00a0");
  const facts = [`${steps} steps`, `guidance ${guidance}`, sampler, pixels, people.names()];
  return { prompt: chosen?.prompt ?? request.prompt, facts: [...facts, ...(chosen ? ["template"] : [])].join(" · ") };
}

/** Everything that the history needs to make the form as it is now. */
function remembered() {
  return { ...settings.typed(), people: people.chosen(), template: templates.chosen()?.id ?? null };
}

/** Make the form as it was for an image of the history. */
export function restore(values) {
  templates.choose(values.template);
  settings.restore(values);
  people.chooseAgain(values.people);
  document.getElementById("prompt").focus();
}
