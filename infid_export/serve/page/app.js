// Starts the page: waits for the engines, fills the form, and connects keys, drop and paste.
import * as api from "./api.js";
import { askToken } from "./dialogs.js";
import * as drawing from "./drawing.js";
import { Problem } from "./errors.js";
import * as history from "./history.js";
import * as job from "./job.js";
import * as people from "./people.js";
import * as settings from "./settings.js";
import * as templates from "./templates.js";

const byId = (id) => document.getElementById(id);
const RETRY_MS = 1000;
const MAC = /Mac|iP(hone|ad)/.test(navigator.platform);

/** Wait until the server is ready, then show the form. */
async function start() {
  try {
    await ready();
    say("Loading the settings …");
    await open(await api.call("/v1/settings"));
  } catch (error) {
    say(error.message, error.fix ?? "", true);
  }
}

/** Ask until the engines are loaded. Damage does not pass by itself, so it ends the waiting. */
async function ready() {
  for (;;) {
    const { status, problem } = await readiness();
    if (status === "ready") return;
    if (status !== "loading") throw new Problem(titles[status] ?? "The server is not ready.", { fix: problem });
    say("Loading the engines …", problem || "The page continues by itself when they are ready.");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

const titles = { damaged: "The engine folder is damaged.", stopping: "The server is stopping." };

async function readiness() {
  const fix = "Check that infid-export serve is running, then try again.";
  const response = await fetch("/readyz", { cache: "no-store" }).catch(() => null);
  const answer = await response?.json().catch(() => null);
  if (!answer) throw new Problem("The server does not answer.", { fix });
  return answer;
}

function say(title, problem = "", retry = false) {
  byId("readiness").hidden = false;
  byId("readiness-title").textContent = title;
  byId("readiness-problem").textContent = problem;
  byId("readiness-retry").hidden = !retry;
}

async function open(folder) {
  const { id, weights, precision } = folder.model;
  byId("model").textContent = `${id}, ${weights} weights, ${precision}`;
  byId("backend").textContent = `Backend: ${folder.backend}.`;
  byId("vocabulary").hidden = weights !== "demo";
  settings.init(folder);
  byId("readiness").hidden = true;
  byId("work").hidden = false;
  await Promise.all([people.init(folder), folder.templates ? templates.init() : null]);
}

function connect() {
  api.onToken(askToken);
  history.onUseAgain(drawing.restore);
  job.init();
  byId("readiness-retry").addEventListener("click", start);
  byId("generate-key").textContent = MAC ? "⌘" : "Ctrl";
  byId("settings").addEventListener("submit", submit);
  byId("name").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) leave(event);
  });
  byId("use-example").addEventListener("click", () => {
    byId("prompt").value = byId("example").textContent;
    byId("prompt").focus();
  });
  document.addEventListener("keydown", onKey);
  connectDrop();
  document.addEventListener("paste", (event) => addFiles(event, filesOf(event.clipboardData).filter(isImage)));
}

function submit(event) {
  event.preventDefault();
  drawing.generate();
}

/** Enter in the name is the end of the name, not the start of an image. */
function leave(event) {
  event.preventDefault();
  event.target.blur();
  event.target.focus();
}

/** Ctrl or Cmd and Enter generates, Escape cancels; an open dialog has its own keys. */
function onKey(event) {
  if (event.isComposing || document.querySelector("dialog[open]") || byId("work").hidden) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  if (event.key === "Escape") job.cancel();
}

/** Photos may be dropped anywhere: a browser would leave the page for one that misses its place. */
function connectDrop() {
  const mark = (on) => byId("drop").classList.toggle("over", on);
  document.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return; // text may be dropped into a field
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || mark(false));
  document.addEventListener("drop", (event) => {
    mark(false);
    addFiles(event, filesOf(event.dataTransfer)); // of any type: the server says what is wrong with one
  });
}

const filesOf = (data) => [...(data?.files ?? [])];
const isImage = ({ type }) => type.startsWith("image/");

function addFiles(event, files) {
  if (!files.length || byId("work").hidden || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  people.enrollNew(files);
}

connect();
start();
