// The job that runs: its progress, and cancelling it. One at a time per page.
import { cancelJob, newJobId } from "./api.js";
import { clear, show } from "./errors.js";

const byId = (id) => document.getElementById(id);
let running = null;

export const isRunning = () => running !== null;

/** Connect the Cancel button. */
export function init() {
  byId("cancel").addEventListener("click", cancel);
}

/**
 * Run `work` as a job and show its progress. Returns what it returns; null if it failed or was cancelled.
 * `work` gets the job's id, a signal that aborts its requests, and `progress` for the server's progress.
 */
export async function run(what, errorPlace, work) {
  if (running) return null;
  clear();
  const job = { id: newJobId(), controller: new AbortController(), cancelled: false, known: false };
  running = job;
  begin(what);
  try {
    const report = (state) => progress(job, what, state);
    const result = await work({ id: job.id, signal: job.controller.signal, progress: report });
    say("", "Done.");
    return result;
  } catch (error) {
    if (job.cancelled) say("Cancelled.");
    else fail(error, errorPlace);
    return null;
  } finally {
    running = null;
    end();
  }
}

/**
 * Stop the running job. Closing the connection is enough, but a proxy may notice that late, so a job that has reported
 * its progress, and can be found by its id, is cancelled on the server first.
 */
export async function cancel() {
  const job = running;
  if (!job || job.cancelled) return;
  job.cancelled = true;
  byId("progress-text").textContent = "Cancelling …";
  if (job.known) await cancelJob(job.id);
  job.controller.abort();
}

function begin(what) {
  byId("progress").hidden = false;
  byId("progress-text").textContent = `${what} …`;
  byId("bar").removeAttribute("value"); // indeterminate
  byId("generate").setAttribute("aria-disabled", "true"); // not `disabled`, which would lose the focus
  byId("pane").setAttribute("aria-busy", "true");
  say("");
  byId("pane").scrollIntoView({ block: "nearest" });
}

function end() {
  if (document.activeElement === byId("cancel")) byId("generate").focus({ preventScroll: true });
  byId("progress").hidden = true;
  byId("generate").removeAttribute("aria-disabled");
  byId("pane").removeAttribute("aria-busy");
}

function fail(error, place) {
  say("");
  show(error, place);
}

/** Each step moves the bar; only the place in the queue and the start are read aloud. */
function progress(job, what, { state, position, step, steps }) {
  job.known = true;
  if (job.cancelled) return;
  if (state === "waiting") {
    const place = `waiting, ${ordinal(position + 1)} in the queue`; // `position` jobs are before it
    byId("progress-text").textContent = place;
    byId("bar").removeAttribute("value");
    say("", place);
    return;
  }
  byId("progress-text").textContent = `step ${step} of ${steps}`;
  byId("bar").max = steps;
  byId("bar").value = step;
  say("", what);
}

/** Write the status below the image; `spoken` is for screen readers alone. */
function say(text, spoken = "") {
  const status = byId("status");
  const shown = text || spoken;
  if (status.textContent !== shown) status.textContent = shown;
  status.classList.toggle("visually-hidden", !text);
}

/** 1st, 2nd, 3rd, 4th, …, 11th, …, 21st. */
export function ordinal(number) {
  const teen = number % 100 > 10 && number % 100 < 14;
  return number + ((teen ? "" : ["", "st", "nd", "rd"][number % 10]) || "th");
}
