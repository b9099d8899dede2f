from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = sync_api.expect

PAGE = Path(__file__).parents[2] / "infid_export" / "serve" / "page"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SKETCH = "a pencil sketch of a person wearing a purple hoodie, in a forest"
UNAUTHORIZED = {"error": {"message": "No valid token.", "param": None, "code": None, "fix": None}}
FULL = {"error": {"message": "The queue is full.", "param": None, "code": "queue_full", "fix": None}}
# Chromium writes every status from 400 on to the console; tests of errors cause these on purpose.
STATUS = "Failed to load resource: the server responded with a status of"
COUNT_URLS = """
window.liveUrls = new Set();
const create = URL.createObjectURL, revoke = URL.revokeObjectURL;
URL.createObjectURL = (blob) => { const url = create.call(URL, blob); liveUrls.add(url); return url; };
URL.revokeObjectURL = (url) => { liveUrls.delete(url); revoke.call(URL, url); };
"""
# Yields the bytes one by one, so that lines and characters are torn apart everywhere.
TORN_STREAM = """async (text) => {
  const { events } = await import("/page/stream.js");
  const bytes = new TextEncoder().encode(text);
  const body = new ReadableStream({
    start(out) {
      for (const byte of bytes) out.enqueue(new Uint8Array([byte]));
      out.close();
    },
  });
  const found = [];
  for await (const event of events({ body })) found.push(event);
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"No browser was found on PATH; looked for {', '.join(BROWSERS)}.")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def new_page(browser: Any, server: Any) -> Iterator[Callable[..., Any]]:
    """Opens tabs; afterwards none may have written an error or asked another host for anything."""
    contexts, errors, hosts = [], [], set()

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.add_init_script(COUNT_URLS)
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add((urlsplit(request.url).scheme, urlsplit(request.url).netloc)))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [error for error in errors if not error.startswith(STATUS)] == []
    assert {host for scheme, host in hosts if scheme not in ("blob", "data")} == {urlsplit(server.url).netloc}


@pytest.fixture
def page(new_page: Callable[..., Any], server: Any) -> Any:
    return ready(new_page(), server)


def ready(page: Any, server: Any) -> Any:
    page.goto(server.url)
    page.locator("#work").wait_for()
    return page


def photo(image: Image.Image, name: str = "anna.png") -> dict[str, Any]:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return {"name": name, "mimeType": "image/png", "buffer": content.getvalue()}


def enroll(page: Any, *images: Image.Image) -> None:
    page.set_input_files("#photos", [photo(image) for image in images])
    page.locator("#face-list li").nth(len(images) - 1).wait_for()


def generate(page: Any, prompt: str = SKETCH, seed: str = "7", steps: str = "2") -> None:
    for field, value in (("prompt", prompt), ("seed", seed), ("steps", steps)):
        page.fill(f"#{field}", value)
    page.click("#generate")


def answer(route: Any, status: int, document: dict[str, Any], **headers: str) -> None:
    route.fulfill(status=status, headers={"content-type": "application/json", **headers}, body=json.dumps(document))


def tab_to(page: Any, selector: str) -> None:
    """Press Tab until an element has the focus, and check that each element on the way shows it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            shown = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(f"{shown} !== 'none' || document.activeElement.matches('.hidden-input')")
            return
    pytest.fail(f"Tab does not reach {selector}.")


def test_a_photo_becomes_an_image_that_can_be_downloaded(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    expect(page.locator("#face-list")).to_contain_text(re.compile(r"1 face found, score 0\.\d\d"))
    assert page.locator("#face-list img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    generate(page)
    row = page.locator("#history li")
    expect(row).to_contain_text(SKETCH)
    expect(row).to_contain_text("Seed 7")
    with page.expect_download() as download:
        row.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-pencil-sketch-of-a-person-wearing-a-purple-hoodie-in-a-for-7.png"
    assert Image.open(download.value.path()).format == "PNG"
    expect(page.locator("#image")).to_have_attribute("alt", SKETCH)


def test_previews_and_steps_are_shown_while_an_image_is_drawn(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    page.evaluate(
        """() => {
          window.seen = [];
          const [pane, text, image] = ["pane", "progress-text", "image"].map((id) => document.getElementById(id));
          const note = () => seen.push(text.textContent, image.alt);
          new MutationObserver(note).observe(pane, { subtree: true, childList: true, attributes: true });
        }"""
    )
    generate(page, steps="6")
    page.locator("#history li").wait_for()
    seen = page.evaluate("seen")
    assert any(re.fullmatch(r"step \d of 6", text) for text in seen)
    assert "Preview of the image that is being drawn" in seen


def test_used_settings_come_back(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    page.locator("#style_strength").fill("0.5")
    generate(page)
    page.locator("#history li").wait_for()
    page.fill("#prompt", "something else")
    page.click("#reset")
    expect(page.locator("#style_strength")).to_have_value("1")
    page.get_by_role("button", name="Use these settings again").click()
    for field, value in (("prompt", SKETCH), ("seed", "7"), ("steps", "2"), ("style_strength", "0.5")):
        expect(page.locator(f"#{field}")).to_have_value(value)


def test_a_random_seed_is_shown(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    generate(page, seed="")
    expect(page.locator("#history li")).to_contain_text(re.compile(r"Seed \d+"))


def test_a_photo_without_a_face_is_explained(page: Any, portrait: Image.Image) -> None:
    page.fill("#prompt", SKETCH)
    page.set_input_files("#photos", [photo(Image.new("RGB", (256, 256), (128, 128, 128)))])
    error = page.get_by_role("alert").filter(has_text="No face was found")
    expect(error).to_contain_text("Use a sharp, upright photo")
    expect(error).to_be_in_viewport()
    expect(page.locator("#prompt")).to_have_value(SKETCH)
    enroll(page, portrait)
    expect(error).to_have_count(0)


def test_an_error_stands_beside_its_field(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    generate(page, steps="500")
    expect(page.locator("#steps-error")).not_to_be_empty()
    expect(page.locator("#steps")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#prompt")).to_have_value(SKETCH)
    generate(page)
    page.locator("#history li").wait_for()
    expect(page.locator("#steps-error")).to_be_empty()


def test_what_is_missing_gets_the_focus(page: Any) -> None:
    page.click("#generate")
    expect(page.locator("#person-error")).to_contain_text("No person is chosen.")
    expect(page.locator("#photos")).to_be_focused()


def test_a_full_queue_loses_nothing(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    page.route("**/v1/images/generations", lambda route: answer(route, 429, FULL, **{"retry-after": "5"}), times=1)
    generate(page)
    expect(page.locator("#drawing-error")).to_have_text("The queue is full. Try again in 5 seconds.")
    page.click("#generate")
    page.locator("#history li").wait_for()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_cancelling_leaves_the_page_usable(page: Any, portrait: Image.Image, way: str) -> None:
    enroll(page, portrait)
    generate(page, steps="100")
    expect(page.locator("#progress-text")).to_have_text(re.compile(r"step \d+ of 100"))
    if way == "button":
        page.click("#cancel")
    else:
        page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#history li")).to_have_count(0)
    generate(page)
    page.locator("#history li").wait_for()


def test_another_face_of_a_photo_can_be_chosen(page: Any, portrait: Image.Image) -> None:
    pair = Image.new("RGB", (2 * portrait.width, portrait.height))
    pair.paste(portrait, (0, 0))
    pair.paste(portrait, (portrait.width, 0))
    enroll(page, pair)
    faces = page.locator("#face-list").get_by_role("button", name=re.compile("^Face 2"))
    expect(page.locator("#face-list")).to_contain_text("2 faces found, face 1 used")
    faces.click()
    expect(page.locator("#face-list")).to_contain_text("2 faces found, face 2 used")
    expect(faces).to_have_attribute("aria-pressed", "true")


def test_photos_of_one_person_are_added_and_removed(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    page.set_input_files("#more-photos", [photo(portrait, "second.png")])
    expect(page.locator("#face-list li")).to_have_count(2)
    page.get_by_role("button", name="Remove the photo second.png").click()
    expect(page.locator("#face-list li")).to_have_count(1)


def test_a_person_is_erased_after_a_question(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    others = page.locator("#people li").count() - 1
    dialog = page.get_by_role("dialog", name="Erase anna?")
    chosen = page.locator("#people li").filter(has=page.locator("input:checked"))
    chosen.get_by_role("button", name="Erase anna").click()
    dialog.get_by_role("button", name="Keep").click()
    expect(page.locator("#people li")).to_have_count(others + 1)
    chosen.get_by_role("button", name="Erase anna").click()
    dialog.get_by_role("button", name="Erase").click()
    expect(page.locator("#people li")).to_have_count(others)
    page.reload()
    page.locator("#work").wait_for()
    expect(page.locator("#people li")).to_have_count(others)


def test_photos_can_be_dropped(page: Any, portrait: Image.Image) -> None:
    content = list(photo(portrait)["buffer"])
    transfer = page.evaluate_handle(
        """bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
          return data;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#face-list")).to_contain_text("dropped.png")


def test_a_template_is_made_used_and_deleted(page: Any, portrait: Image.Image) -> None:
    enroll(page, portrait)
    before = page.locator("#templates li").count()
    page.fill("#prompt", SKETCH)
    page.fill("#steps", "2")
    page.click("#make-template")
    expect(page.locator("#templates li")).to_have_count(before + 1)
    expect(page.locator("#template-note")).to_contain_text("2 steps")
    expect(page.locator("#prompt")).to_be_disabled()
    preview = page.locator("#templates input:checked + img")
    expect(preview).to_have_attribute("src", re.compile("^blob:"))
    page.click("#generate")
    expect(page.locator("#history li")).to_contain_text("template")
    page.get_by_role("button", name="Use no template").click()
    expect(page.locator("#prompt")).to_be_enabled()
    page.get_by_role("button", name=f"Delete the template: {SKETCH}").last.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#templates li")).to_have_count(before)


def test_the_keyboard_is_enough(page: Any) -> None:
    tab_to(page, "[data-drawn='1']")
    page.keyboard.press("Enter")
    page.locator("#face-list li").wait_for()
    tab_to(page, "#prompt")
    page.keyboard.type(SKETCH)
    tab_to(page, "#more summary")
    tab_to(page, "#style_strength")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("output").first).to_have_text("0.95")
    tab_to(page, "#steps")
    page.keyboard.type("2")
    page.keyboard.press("Control+Enter")
    page.locator("#history li").wait_for()
    tab_to(page, "#generate")
    tab_to(page, "#download")
    tab_to(page, "#history .links button:last-child")
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(0)
    expect(page.locator("#history-title")).to_be_focused()


def test_every_field_has_a_label(page: Any) -> None:
    unnamed = """() => [...document.querySelectorAll("input, textarea, select")]
      .filter((field) => !field.labels.length && !field.getAttribute("aria-label")).map((field) => field.outerHTML)"""
    assert page.evaluate(unnamed) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_does_not_scroll_sideways(
    new_page: Callable[..., Any], server: Any, portrait: Image.Image, scheme: str
) -> None:
    page = ready(new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme), server)
    enroll(page, portrait)
    page.fill("#prompt", "longword" * 40)
    generate(page, prompt="longword" * 40)
    page.locator("#history li").wait_for()
    for fold in page.locator("details:not([hidden]) > summary").all():
        fold.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_token_is_asked_for_and_kept_in_the_tab(new_page: Callable[..., Any], server: Any) -> None:
    page = new_page()

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            answer(route, 401, UNAUTHORIZED)

    page.route("**/v1/**", guard)
    page.goto(server.url)
    dialog = page.get_by_role("dialog", name="This server asks for a token")
    for token in ("wrong", "secret"):
        expect(dialog.get_by_label("Token")).to_be_focused()
        dialog.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        if token == "wrong":
            expect(dialog).to_contain_text("The server did not accept the token.")
    page.locator("#work").wait_for()
    page.reload()
    page.locator("#work").wait_for()
    expect(dialog).to_be_hidden()
    assert page.evaluate("Object.entries(sessionStorage)") == [["infid-token", "secret"]]
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_declined_token_can_be_given_later(new_page: Callable[..., Any], server: Any) -> None:
    page = new_page()
    page.route("**/v1/settings", lambda route: answer(route, 401, UNAUTHORIZED), times=1)
    page.goto(server.url)
    page.locator("#token-dialog").wait_for()
    page.keyboard.press("Escape")
    expect(page.locator("#readiness")).to_contain_text("The server asks for a token.")
    page.get_by_role("button", name="Try again").click()
    page.locator("#work").wait_for()


def test_the_page_waits_for_the_engines(new_page: Callable[..., Any], server: Any) -> None:
    page = new_page()
    page.route("**/readyz", lambda route: answer(route, 503, {"status": "loading", "problem": ""}), times=1)
    page.goto(server.url)
    expect(page.locator("#readiness")).to_contain_text("Loading the engines")
    page.locator("#work").wait_for()


def test_a_damaged_folder_is_shown(new_page: Callable[..., Any], server: Any) -> None:
    page = new_page()
    damage = {"status": "damaged", "problem": "vae_decoder.onnx does not match its hash."}
    page.route("**/readyz", lambda route: answer(route, 503, damage), times=1)
    page.goto(server.url)
    expect(page.locator("#readiness")).to_contain_text("vae_decoder.onnx does not match its hash.")
    page.get_by_role("button", name="Try again").click()
    page.locator("#work").wait_for()


def test_images_leave_the_memory(page: Any, portrait: Image.Image) -> None:
    before = page.evaluate("liveUrls.size")
    enroll(page, portrait)
    generate(page, steps="6")
    page.locator("#history li").wait_for()
    assert page.evaluate("liveUrls.size") == before + 2  # the aligned face and the image; no preview
    page.get_by_role("button", name=re.compile("^Remove the image")).click()
    expect(page.locator("#image")).to_be_hidden()
    page.locator("#people li").filter(has=page.locator("input:checked")).get_by_role("button").click()
    page.get_by_role("dialog").get_by_role("button", name="Erase").click()
    expect(page.locator("#faces")).to_be_hidden()
    assert page.evaluate("liveUrls.size") == before


def test_a_stream_may_be_torn_anywhere(page: Any) -> None:
    text = ': comment\n\nevent: a\ndata: {"type":"a","text":"λ €"}\n\nevent: b\r\ndata: {"type":\r\ndata: "b"}\r\n\r\n'
    assert page.evaluate(TORN_STREAM, text) == [{"type": "a", "text": "λ €"}, {"type": "b"}]


def test_places_in_the_queue_are_ordinals(page: Any) -> None:
    words = page.evaluate("import('/page/job.js').then(({ ordinal }) => [1, 2, 3, 4, 11, 22, 113].map(ordinal))")
    assert words == ["1st", "2nd", "3rd", "4th", "11th", "22nd", "113th"]


def test_the_page_has_nothing_inline_and_no_other_host() -> None:
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for path in [path for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js")]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), path.name


def test_the_words_of_the_demo_model_are_those_of_its_page() -> None:
    described = (PAGE.parents[2] / "docs" / "demo-model.md").read_text()
    words = re.findall(r"<dt>(\w+)</dt><dd>(.+?)</dd>", (PAGE / "index.html").read_text())
    assert [name for name, _ in words] == ["Style", "Clothes", "Hat", "Action", "Place"]
    for name, known in words:
        assert f"| {name.lower()} | {known} |" in described


def test_files_stay_small() -> None:
    assert {path.name for path in PAGE.glob("*.js") if len(path.read_text().splitlines()) > 300} == set()
