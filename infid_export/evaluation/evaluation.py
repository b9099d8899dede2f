"""Generates and scores all images of a set, and defines the document that stores the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL import Image

from infid_engines.documents import read_json, record
from infid_engines.errors import InputError
from infid_engines.progress import Stage
from infid_export.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, Interval, mean_interval
from infid_export.evaluation.generators import Generator
from infid_export.evaluation.scorers import METRICS, Array, Scorers, cosine, face_similarity
from infid_export.evaluation.sets import EvaluationSet, Request, Subject

SCHEMA_VERSION = 2
SUBSETS = ("all", "plain", "stylized")
OnPicture = Callable[[Request, Image.Image], None]


@dataclass(frozen=True)
class PictureScore:
    """The scores of one image.

    Args:
        person: name of the person.
        prompt: text of the prompt.
        stylized: whether the prompt asks for a style.
        seed: the set's seed.
        noise_seed: seed of the initial noise.
        clip_t: CLIP-T.
        clip_i: CLIP-I.
        m_facenet: M_FaceNet, 0 if no face was found.
        face_found: whether the image shows a face.
    """

    person: str
    prompt: str
    stylized: bool
    seed: int
    noise_seed: int
    clip_t: float
    clip_i: float
    m_facenet: float
    face_found: bool

    @property
    def key(self) -> tuple[str, str, int]:
        """The key by which images of two generators are paired."""
        return self.person, self.prompt, self.seed


@dataclass(frozen=True)
class Evaluation:
    """All scores of one generator on one set.

    Args:
        set: the evaluated set, see `EvaluationSet.to_json`.
        generator: description of the generator.
        scorers: description of the scorers.
        pictures: scores in the set's order.
    """

    set: dict[str, Any]
    generator: dict[str, Any]
    scorers: dict[str, Any]
    pictures: tuple[PictureScore, ...]

    def subset(self, name: str) -> tuple[PictureScore, ...]:
        """Return the scores for `all`, `plain` or `stylized` prompts."""
        return tuple(picture for picture in self.pictures if name == "all" or picture.stylized == (name == "stylized"))

    def interval(self, metric: str, subset: str = "all") -> Interval:
        """Return a score's mean over a subset with its interval over people."""
        pictures = self.subset(subset)
        return mean_interval([getattr(each, metric) for each in pictures], [each.person for each in pictures])

    @property
    def faces_missing(self) -> int:
        """Number of images without a face."""
        return sum(not picture.face_found for picture in self.pictures)

    def scores(self) -> dict[str, dict[str, Interval]]:
        """Return all intervals, by subset and metric; a subset without images is omitted."""
        return {
            subset: {metric: self.interval(metric, subset) for metric in METRICS}
            for subset in SUBSETS
            if self.subset(subset)
        }

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "evaluation",
            "set": self.set,
            "generator": self.generator,
            "scorers": self.scorers,
            "bootstrap": {"over": "people", "resamples": RESAMPLES, "level": LEVEL, "seed": SEED},
            "counts": {
                "people": len(self.set["people"]),
                "prompts": len(self.set["prompts"]),
                "seeds": len(self.set["seeds"]),
                "pictures": len(self.pictures),
                "faces_missing": self.faces_missing,
            },
            "scores": {
                subset: {metric: interval.to_json() for metric, interval in row.items()}
                for subset, row in self.scores().items()
            },
            "pictures": [asdict(picture) for picture in self.pictures],
        }

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read a document; the intervals are computed again from its scores.

        Raises:
            InputError: the file is missing, or is not such a document.
        """
        try:
            values = read_json(path)
            if (values["kind"], values["schema_version"]) != ("evaluation", SCHEMA_VERSION):
                raise ValueError(f"it is {values['kind']} of version {values['schema_version']}")
            pictures = tuple(record(PictureScore, picture, "a picture") for picture in values["pictures"])
            parts: list[dict[str, Any]] = [dict(values[name]) for name in ("set", "generator", "scorers")]
            parts[0]["fingerprint"], parts[1]["settings"]
            if not pictures:
                raise ValueError("it has no pictures")
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"{path} is not an evaluation of this version ({what}).",
                fix="Make one with `infid-export evaluate -o`.",
            ) from error
        return cls(parts[0], parts[1], parts[2], pictures)


def evaluate(
    generator: Generator, chosen: EvaluationSet, scorers: Scorers, stage: Stage, on_picture: OnPicture | None = None
) -> Evaluation:
    """Generate and score all images of a set, one person after the other.

    Args:
        generator: generates the images.
        chosen: the set.
        scorers: score the images.
        stage: receives the progress.
        on_picture: called with every request and its image.

    Raises:
        InputError: a reference photo shows no face, or a scorer returns unusable embeddings.
    """
    texts = dict(
        zip(
            (prompt.text for prompt in chosen.prompts),
            scorers.image_text.embed_texts([prompt.text for prompt in chosen.prompts]),
            strict=True,
        )
    )
    faces = _reference_faces(scorers, chosen.people)  # all of them before the first image is generated
    pictures: list[PictureScore] = []
    for subject, face in zip(chosen.people, faces, strict=True):
        person = _enrolled(generator, subject)
        reference = scorers.image_text.embed_images([subject.photo])[0]
        for requests in _chunks(chosen.requests(subject), generator.batch):
            prompts, seeds = [each.prompt.text for each in requests], [each.noise_seed for each in requests]
            images = generator.generate(person, prompts, seeds, requests[0].prompt.stylized)
            pictures += _scored(scorers, requests, images, texts, reference, face)
            stage.update(len(pictures) / len(chosen), f"{len(pictures)} of {len(chosen)}")
            if on_picture is not None:
                for request, image in zip(requests, images, strict=True):
                    on_picture(request, image)
    return Evaluation(chosen.to_json(), generator.describe(), scorers.describe(), tuple(pictures))


def _reference_faces(scorers: Scorers, people: Sequence[Subject]) -> list[Array]:
    """Return the face embedding of every reference photo."""
    found = []
    for subject, face in zip(people, scorers.face.embed_faces([each.photo for each in people]), strict=True):
        if face is None:
            raise InputError(
                f"No face was found in the reference photo of {subject.name}.",
                fix="Use a sharp, upright photo with a face seen from the front, or another --face-detector.",
            )
        found.append(face)
    return found


def _enrolled(generator: Generator, subject: Subject) -> Any:
    """Enroll a person, and name the person in errors."""
    try:
        return generator.enroll(subject.photo)
    except InputError as error:
        raise InputError(f"The reference photo of {subject.name}: {error.problem}", fix=error.fix) from error


def _scored(
    scorers: Scorers,
    requests: Sequence[Request],
    images: Sequence[Image.Image],
    texts: dict[str, Array],
    reference: Array,
    reference_face: Array,
) -> Iterable[PictureScore]:
    """Yield the scores of the images from one call."""
    embeddings, faces = scorers.image_text.embed_images(images), scorers.face.embed_faces(images)
    for request, embedding, face in zip(requests, embeddings, faces, strict=True):
        yield PictureScore(
            person=request.person.name,
            prompt=request.prompt.text,
            stylized=request.prompt.stylized,
            seed=request.seed,
            noise_seed=request.noise_seed,
            clip_t=cosine(embedding, texts[request.prompt.text]),
            clip_i=cosine(embedding, reference),
            m_facenet=face_similarity(face, reference_face),
            face_found=face is not None,
        )


def _chunks(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Yield batches of requests: in order, at most `size`, and all with a style or all without."""
    for _, alike in groupby(requests, key=lambda request: request.prompt.stylized):
        while chunk := list(islice(alike, size)):
            yield chunk
