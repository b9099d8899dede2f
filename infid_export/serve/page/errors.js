// Problems, each with its fix, shown next to the field that caused them.

/** What went wrong and what to do, from the server or from the page. */
export class Problem extends Error {
  constructor(message, { fix = null, param = null, code = null, status = 0 } = {}) {
    super(message);
    Object.assign(this, { fix, param, code, status });
  }
}

const slots = () => document.querySelectorAll(".error[role=alert]");

/** The place for errors of a request's field, if the page shows that field. */
function slotOf(param) {
  return [...slots()].find((slot) => (slot.dataset.errorFor ?? "").split(" ").includes(param));
}

/** Show a problem beside its field, or in the place with the id `otherwise`. */
export function show(error, otherwise) {
  const problem = error instanceof Problem ? error : unexpected(error);
  const found = problem.param && slotOf(problem.param);
  const slot = found && !found.closest("[hidden]") ? found : document.getElementById(otherwise);
  fill(slot, problem);
  mark(problem.param);
  for (let fold = slot.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  slot.scrollIntoView({ block: "nearest" });
}

function unexpected(error) {
  console.error(error);
  return new Problem(`The page failed: ${error.message}.`, { fix: "Reload it; this is a bug in infid-export." });
}

/** Write message and fix; the role of the slot announces them. */
export function fill(slot, { message, fix }) {
  const strong = document.createElement("strong");
  strong.append(...withCode(message));
  slot.replaceChildren(strong);
  if (fix) slot.append(" ", ...withCode(fix));
}

/** Messages have commands in backticks. */
function withCode(text) {
  return text.split("`").map((part, index) => {
    return index % 2 ? Object.assign(document.createElement("code"), { textContent: part }) : part;
  });
}

/** Tell assistive technology which field the error is about, until it is changed. */
function mark(param) {
  const field = param && document.querySelector(`#settings [name="${CSS.escape(param)}"]`);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.addEventListener("input", () => field.removeAttribute("aria-invalid"), { once: true });
}

/** Remove the error of one place; without an id, all errors of the form and the image. */
export function clear(id) {
  const cleared = id ? [document.getElementById(id)] : document.querySelectorAll("main .error");
  for (const slot of cleared) slot.replaceChildren();
  if (id) return;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}
