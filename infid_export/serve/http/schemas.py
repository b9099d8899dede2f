"""Bodies of requests and responses: OpenAI's fields, and beside them those that only this server has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_SEED = Annotated[int, Field(ge=0, lt=1 << 63)]
_STRENGTH = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
_ID = Annotated[str, Field(min_length=1, max_length=64)]
_Sampler = Literal["ddim", "euler", "dpmpp_2m", "euler_a", "lcm", "tcd"]
_Spacing = Literal["leading", "trailing", "linspace", "karras"]
_SIZE = r"^(auto|[1-9][0-9]{1,4}x[1-9][0-9]{1,4})$"
Prompt = Annotated[str, Field(max_length=1_000_000)]  # the server's own limit is checked by the route


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Sampling(_Body):
    """How an image is sampled; fields that are left out have the engine folder's values."""

    negative_prompt: Prompt | None = Field(None, description="What to avoid.")
    steps: int | None = Field(None, ge=1, description="Number of steps.")
    guidance: float | None = Field(
        None, ge=0, le=100, allow_inf_nan=False,
        description="g of classifier-free guidance u + g·(c − u); 1 is the conditional prediction alone.",
    )  # fmt: skip
    sampler: _Sampler | None = None
    spacing: _Spacing | None = Field(None, description="Spacing of the sampler's timesteps.")
    size: str | None = Field("auto", pattern=_SIZE, description="Width × height as `1024x1024`, or `auto`.")

    def pixels(self) -> dict[str, int | None]:
        """Return height and width; None for the folder's."""
        if self.size in (None, "auto"):
            return {"height": None, "width": None}
        width, height = map(int, str(self.size).split("x"))
        return {"height": height, "width": width}


class TemplateRequest(_Sampling):
    """Makes a template."""

    prompt: Prompt
    seed: _SEED = Field(0, description="Of the text stream's noise, and the default of images from the template.")


class ImageFields(_Sampling):
    """What both image routes take."""

    prompt: Prompt | None = Field(None, description="Needed unless a template is given.")
    model: str | None = Field(None, max_length=256)
    n: int | None = Field(1, ge=1, description="Number of images; their seeds count up.")
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    response_format: Literal["b64_json"] | None = Field(
        None, description="Images are not stored, so there are no URLs."
    )
    background: Literal["auto", "opaque"] | None = Field("auto", description="Always opaque.")
    quality: str | None = Field(None, max_length=16, description="Has no effect: the number of steps decides.")
    moderation: str | None = Field(None, max_length=16, description="Has no effect: nothing is moderated.")
    style: str | None = Field(None, max_length=16, description="Has no effect: the prompt decides.")
    user: str | None = Field(None, max_length=512, description="Ignored.")
    safety_identifier: str | None = Field(None, max_length=512, description="Ignored.")
    stream: bool | None = Field(False, description="Answer with server-sent events.")
    partial_images: int | None = Field(0, ge=0, le=3, description="Previews in the stream, for each image.")
    seed: _SEED | None = Field(None, description="Of the noise; left out, it is random, or the template's.")
    text_seed: _SEED | None = Field(None, description="Of the text stream's noise; left out, it is the seed.")
    style_strength: _STRENGTH | None = Field(None, description="s of AdaIN-mean; 1 is the paper's value.")
    identity_strength: _STRENGTH | None = Field(None, description="λ; 1 is the paper's value.")
    template: _ID | None = Field(None, description="Id of a template. It decides prompt, size, steps and sampler.")
    progress: bool | None = Field(False, description="Also send `infid.progress` events.")

    @field_validator("seed", "text_seed", "steps", "n", "partial_images", mode="before")
    @classmethod
    def _no_bools(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a whole number")
        return value


class GenerationRequest(ImageFields):
    """Images of enrolled people."""

    person: _ID | None = Field(None, description="Id of the person that the images show.")
    people: list[_ID] | None = Field(
        None, min_length=1, max_length=16, description="Ids of several people in one image, for a folder with slots."
    )


class EditRequest(ImageFields):
    """Images of the person on the uploaded photos, which are not stored."""

    face_index: int | None = Field(None, ge=0, description="Which face of each photo; left out, the largest clear one.")
    input_fidelity: str | None = Field(None, max_length=16, description="Has no effect: see identity_strength.")


class PersonFields(_Body):
    """What enrolling takes beside the photos."""

    name: str = Field("", max_length=256)
    face_index: int | None = Field(None, ge=0, description="Which face of each photo; left out, the largest clear one.")


class ErrorBody(BaseModel):
    """The body of an error, in OpenAI's form."""

    class Detail(BaseModel):
        """What is wrong."""

        message: str
        type: str
        param: str | None
        code: str | None
        fix: str | None

    error: Detail


class Usage(BaseModel):
    """What a request took in and gave out."""

    input_tokens: int = Field(description="Text and identity tokens.")
    input_tokens_details: dict[str, int]
    output_tokens: int = Field(description="Latent tokens of the images.")
    total_tokens: int


class ImageData(BaseModel):
    """One image."""

    b64_json: str
    seed: int


class ImagesResponse(BaseModel):
    """Finished images."""

    created: int
    data: list[ImageData]
    size: str
    output_format: str
    background: str
    quality: str
    usage: Usage
    notes: list[str] = Field(description="For example that a prompt was too long and its end was dropped.")


class FaceFacts(BaseModel):
    """The face of one photo."""

    found: int = Field(description="Number of faces.")
    taken: int = Field(description="Index of the face that was used.")
    faces: list[dict[str, Any]] = Field(description="Score and box (left, top, right, bottom) of each.")
    crop: str = Field(description="PNG of the aligned face, in base64; it is not stored.")


class PersonBody(BaseModel):
    """A person."""

    id: str
    object: Literal["person"] = "person"
    name: str
    created_at: int


class EnrolledBody(PersonBody):
    """A person, with the faces that were used; none if the engines read whole images."""

    faces: list[FaceFacts]


class TemplateBody(BaseModel):
    """A template."""

    id: str
    object: Literal["template"] = "template"
    prompt: str
    negative_prompt: str | None
    seed: int
    size: str
    steps: int
    guidance: float
    sampler: str
    spacing: str | None
    bytes: int
    created_at: int


class ListBody(BaseModel):
    """A list."""

    object: Literal["list"] = "list"
    data: list[Any]


class DeletedBody(BaseModel):
    """Something that is gone."""

    id: str
    object: str
    deleted: bool = True


class JobBody(BaseModel):
    """A request that waits or is drawn."""

    id: str
    object: Literal["job"] = "job"
    state: Literal["waiting", "drawing"]
    position: int
    step: int
    steps: int


class CancelledBody(BaseModel):
    """A job that was cancelled."""

    id: str
    object: Literal["job"] = "job"
    cancelled: bool = True
