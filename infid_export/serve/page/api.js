// Requests to the server: token, errors, ids of jobs.
import { Problem } from "./errors.js";

const TOKEN = "infid-token"; // in sessionStorage: the only thing the page stores in the browser
let askForToken = async () => null;
let asking = null;

/** Set the function that asks a person for the token; it returns null if they decline. */
export function onToken(ask) {
  askForToken = ask;
}

/** An id for a request's job. Not randomUUID, which is missing on plain http from another machine. */
export function newJobId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Send a request and return the response; asks for the token once the server demands one. */
export async function send(path, { method = "GET", json, form, id, signal } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = {};
    if (token) headers.Authorization = `Bearer ${token}`;
    if (id) headers["X-Request-Id"] = id;
    if (json) headers["Content-Type"] = "application/json";
    const response = await reach(path, { method, headers, body: json ? JSON.stringify(json) : form, signal });
    if (response.ok) return response;
    if (response.status !== 401) throw await problemOf(response);
    const declined = new Problem("The server asks for a token.", { fix: "Try again to enter it." });
    if (!(await renewToken(token))) throw declined;
  }
}

/** Send a request and return the JSON of its answer. */
export async function call(path, options) {
  return (await send(path, options)).json();
}

/** Stop a job. It may have ended by itself in the meantime, so failures do not matter. */
export async function cancelJob(id) {
  await send(`/v1/jobs/${id}`, { method: "DELETE", signal: AbortSignal.timeout(2000) }).catch(() => {});
}

async function reach(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    const fix = "Check that `infid-export serve` is running, then try again.";
    throw new Problem("The server does not answer.", { fix });
  }
}

/** Ask for a token, once for all requests that failed together; false if the person declines. */
async function renewToken(used) {
  if (sessionStorage.getItem(TOKEN) !== used) return true; // another request has got a new one
  asking ??= askForToken(used !== null).finally(() => {
    asking = null;
  });
  const token = await asking;
  if (token) sessionStorage.setItem(TOKEN, token);
  return Boolean(token);
}

async function problemOf(response) {
  const answer = await response.json().catch(() => null);
  const error = answer?.error ?? { message: `The server answered ${response.status} without saying why.` };
  return problem(error, response.status, response.headers.get("Retry-After"));
}

/** Turn an error of the server, from an answer or from a stream, into a problem. */
export function problem({ message, fix = null, param, code }, status = 0, retryAfter = null) {
  const wait = retryAfter && !fix ? `Try again in ${retryAfter} seconds.` : fix;
  return new Problem(message, { fix: wait, param, code, status });
}
