"""People: in memory and in a folder, over HTTP and below it."""

from __future__ import annotations

import base64
import errno
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate import Gate
from PIL import Image
from running import Running, dot_png, options_of, running, wait_until
from tiny_engines import WHOLE, write_folder

from infid_export.faces.photos import load_photo
from infid_export.runtime.person import Person
from infid_export.serve.http.problems import Problem
from infid_export.serve.stores.people import People, PeopleInFolder, PeopleInMemory


def person(name: str = "Anna") -> Person:
    random = np.random.default_rng(1)
    tokens, keys, values = (random.standard_normal((2, 3, depth)).astype(np.float32) for depth in (6, 5, 5))
    return Person(tokens, keys, values, "a" * 64, name)


def test_engines_for_whole_images_enroll_without_a_face(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines", reads_face=False, faces=WHOLE)
    content = BytesIO()
    Image.new("RGB", (64, 80), (9, 99, 200)).save(content, "PNG")
    with running(options_of(folder)) as server:
        answer = server.post("/v1/people", files={"image": content.getvalue()}, data={"name": "cat"})
        assert answer.status_code == 201, answer.text
        assert answer.json()["faces"] == []


SIZE = sum(getattr(person(), name).nbytes for name in ("identity_tokens", "identity_keys", "identity_values"))


@pytest.fixture(params=["memory", "folder"])
def people(request: pytest.FixtureRequest, tmp_path: Path) -> People:
    return PeopleInMemory(10_000) if request.param == "memory" else PeopleInFolder(tmp_path / "people", 10_000)


def test_people_are_kept_listed_and_erased(people: People) -> None:
    anna, bert = people.add(person("Anna")), people.add(person("Bert"))
    assert people.get(anna.id).name == "Anna"
    assert people.get(anna.id) is people.get(anna.id)
    assert people.record(bert.id) == bert
    assert {record.id for record in people.list()} == {anna.id, bert.id}
    assert people.nbytes >= SIZE
    people.erase(anna.id)
    for call in (people.get, people.record, people.erase):
        with pytest.raises(Problem, match="There is no person") as caught:
            call(anna.id)
        assert caught.value.status == 404
    assert [record.name for record in people.list()] == ["Bert"]


@pytest.mark.parametrize("id", ["../outside", "a/b", "", ".", "..", ".hidden", "a.b", "x" * 65, "a\0b", "ä", "-a"])
def test_ids_cannot_leave_the_folder(tmp_path: Path, id: str) -> None:
    people = PeopleInFolder(tmp_path / "people", 10_000)
    person().save(tmp_path / "outside.safetensors")
    for call in (people.get, people.record, people.erase):
        with pytest.raises(Problem, match="There is no person"):
            call(id)
    assert (tmp_path / "outside.safetensors").is_file()


def test_links_are_not_followed(tmp_path: Path) -> None:
    people = PeopleInFolder(tmp_path / "people", 10_000)
    person().save(tmp_path / "outside.safetensors")
    (tmp_path / "people/link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    assert people.list() == []
    with pytest.raises(Problem, match="There is no person"):
        people.erase("link")


def test_files_are_private_and_shared_by_servers(tmp_path: Path) -> None:
    first, second = (PeopleInFolder(tmp_path / "people", 10_000) for _ in range(2))
    record = first.add(person())
    (file,) = (tmp_path / "people").iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == (f"{record.id}.safetensors", 0o600)
    assert (tmp_path / "people").stat().st_mode & 0o777 == 0o700
    assert second.get(record.id).name == "Anna"
    second.erase(record.id)
    with pytest.raises(Problem):
        first.get(record.id)


def test_a_file_made_by_hand_is_a_person_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    people = PeopleInFolder(tmp_path / "people", 10_000)
    person("Carla").save(tmp_path / "people/carla.safetensors")
    (tmp_path / "people/broken.safetensors").write_bytes(b"broken")
    (tmp_path / "people/notes.txt").write_text("x")
    assert [(record.id, record.name) for record in people.list()] == [("carla", "Carla")]
    with pytest.raises(Problem, match="The file of the person is damaged") as caught:
        people.get("broken")
    assert str(tmp_path) not in str(caught.value.document)
    replaced = replace(person("Cleo"))
    replaced.save(tmp_path / "people/carla.safetensors")
    os.utime(tmp_path / "people/carla.safetensors", ns=(1, 1))
    assert people.get("carla").name == "Cleo"  # a file that has changed is read again


def test_the_memory_for_people_has_a_limit(tmp_path: Path) -> None:
    people = PeopleInMemory(2 * SIZE)
    first = people.add(person())
    people.add(person())
    with pytest.raises(Problem, match=f"take {2 * SIZE:,} bytes of {2 * SIZE:,}; this one needs") as caught:
        people.add(person())
    assert (caught.value.status, caught.value.code) == (507, "no_room")
    people.erase(first.id)
    people.add(person())
    files = PeopleInFolder(tmp_path / "people", 2 * SIZE)
    ids = [files.add(person()).id for _ in range(4)]
    for id in ids:
        files.get(id)
    assert files.nbytes == 2 * SIZE


def test_enrolling_shows_the_faces(tiny: Running) -> None:
    photos = [("image[]", dot_png()), ("image[]", dot_png(brightness=120))]
    answer = tiny.post("/v1/people", files=photos, data={"name": "Anna"})
    body = answer.json()
    assert answer.status_code == 201
    assert (body["object"], body["name"], len(body["faces"])) == ("person", "Anna", 2)
    face = body["faces"][0]
    assert (face["found"], face["taken"], face["faces"][0]["score"]) == (1, 0, 1.0)
    assert load_photo(base64.b64decode(face["crop"])).shape == (224, 224, 3)
    direct = tiny.service.pipe.enroll([photo for _, photo in photos])
    np.testing.assert_array_equal(tiny.service.people.get(body["id"]).identity_keys, direct.identity_keys)
    assert tiny.get(f"/v1/people/{body['id']}").json() == {
        key: body[key] for key in ("id", "object", "name", "created_at")
    }
    assert body["id"] in [each["id"] for each in tiny.get("/v1/people").json()["data"]]
    gone = tiny.delete(f"/v1/people/{body['id']}").json()
    assert gone == {"id": body["id"], "object": "person.deleted", "deleted": True}
    assert tiny.get(f"/v1/people/{body['id']}").status_code == 404
    assert tiny.delete(f"/v1/people/{body['id']}").status_code == 404


@pytest.mark.parametrize(
    ("files", "data", "status", "message"),
    [
        ([], {"name": "x"}, 415, "The body is not multipart"),
        ([("photo", dot_png())], {}, 400, "1 to 10 photos are needed, not 0"),
        ([("image", dot_png())] * 11, {}, 400, "1 to 10 photos are needed, not 11"),
        ([("image", dot_png())] * 12, {}, 400, "Too many files"),
        ([("image", b"")], {}, 400, "The image is empty"),
        ([("image", dot_png())], {"face_index": "x"}, 400, "face_index: Input should be a valid integer"),
        ([("image", dot_png())], {"face_index": "4"}, 400, "there is no face 4"),
        ([("image", dot_png())], {"height": "3"}, 400, "There is no field 'height'"),
        ([("image", dot_png())], {"name": ["a", "b"]}, 400, "The field 'name' was sent twice"),
        ([("image", dot_png()), ("name", b"file")], {}, 400, "The field 'name' does not take a file"),
        ([("image", dot_png())], {"name": "x" * 9000}, 400, "Part exceeded maximum size"),
    ],
)
def test_bad_forms(tiny: Running, files: Any, data: Any, status: int, message: str) -> None:
    answer = tiny.post("/v1/people", files=files, data=data)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n", b"\0" * 100])
def test_damaged_forms(tiny: Running, body: bytes) -> None:
    for kind in (
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "multipart/form-data; boundary=x; charset=no",
    ):
        answer = tiny.post("/v1/people", content=body, headers={"content-type": kind})
        assert answer.status_code == 400


def test_a_photo_with_too_many_pixels_is_rejected_by_its_header(tiny_folder: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
    )
    with running(options_of(tiny_folder)) as server:
        answer = server.post("/v1/people", files={"image": bomb})
        assert answer.status_code == 400
        assert "9000 × 9000 pixels, more than 40,000,000" in answer.json()["error"]["message"]


def test_people_in_a_folder_outlive_the_server(tiny_folder: Path, tmp_path: Path) -> None:
    options = options_of(tiny_folder, people=tmp_path / "people")
    with running(options) as server:
        id = server.enroll(name="Anna")
        assert server.get("/v1/settings").json()["people"] == {"stored": True}
    with running(options) as server:
        assert [each["name"] for each in server.get("/v1/people").json()["data"]] == ["Anna"]
        body = {"prompt": "a", "person": id, "seed": 1}
        assert server.post("/v1/images/generations", json=body).status_code == 200
        assert server.delete(f"/v1/people/{id}").status_code == 200
    assert list((tmp_path / "people").iterdir()) == []


def test_photos_are_never_written(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette would write a part of more than 1 MB to a temporary file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rolled: list[Any] = []
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda self: rolled.append(self))
    random = np.random.default_rng(0).integers(0, 200, (900, 900, 3), dtype=np.uint8)
    content = BytesIO()
    Image.fromarray(random).save(content, format="PNG")
    assert len(content.getvalue()) > 2_000_000
    with running(options_of(tiny_folder)) as server:
        assert server.post("/v1/people", files={"image": content.getvalue()}).status_code in (201, 400)
    assert rolled == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_loses_nothing(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(options_of(tiny_folder, people=tmp_path / "people")) as server:
        kept = server.enroll(name="Anna")

        def full(path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full)
            answer = server.post("/v1/people", files={"image": dot_png()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
        assert answer.json()["error"]["message"] == "The server's disk is full."
        assert [each["id"] for each in server.get("/v1/people").json()["data"]] == [kept]
        assert [path.name for path in (tmp_path / "people").iterdir()] == [f"{kept}.safetensors"]
        assert server.post("/v1/images/generations", json={"prompt": "a", "person": kept}).status_code == 200
        server.enroll(name="Bert")


def test_erasing_a_person_stops_the_images(fresh: Running) -> None:
    gate, id = Gate(fresh), fresh.enroll()
    with ThreadPoolExecutor(1) as threads:
        body = {"prompt": "a", "person": id}
        asked = threads.submit(fresh.post, "/v1/images/generations", json=body)
        assert gate.entered.acquire(timeout=10)
        assert fresh.delete(f"/v1/people/{id}").status_code == 200
        gate.open.set()
        answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "The person was erased.")
    wait_until(lambda: not fresh.service.jobs)
