"""What OpenAPI says of the answers, with examples."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.serving.limits import Limits
from pipeline.serving.uploads import FIELD


class Refused(BaseModel):
    """A request that is not answered."""

    error: str = Field(examples=["send pictures as files of multipart/form-data in the field `pictures`"])


class NamedClass(BaseModel):
    """A class, and how likely it is."""

    class_: str = Field(alias="class", examples=["001.Black_footed_Albatross"])
    probability: float = Field(ge=0, le=1.00001, examples=[0.93])


class Picture(BaseModel):
    """What the model says of one file, or why it cannot be read."""

    model_config = ConfigDict(extra="allow")

    image: str = Field(description="its name in the request", examples=["one.jpg"])
    classes: list[NamedClass] | None = Field(None, description="the most likely ones, best first")
    none_of_these: bool | None = Field(
        None, description="whether the picture is of none of the classes; left out without a threshold"
    )
    prediction_set: list[str] | None = Field(
        None, description="classes of which one is right with the promised frequency; left out without a rule"
    )
    heat_maps: list[list[list[float]]] | None = Field(
        None,
        description="if asked for: for each of the first classes, as far as the model has them, the rows of a grid "
        "over the centre of the picture, with what each place adds to the logit; left out where the network has none",
    )
    error: str | None = Field(None, description="in place of classes, where the file cannot be read")


class Served(BaseModel):
    """Which model has answered."""

    run: str = Field(examples=["low_lr"])
    checkpoint_sha256: str


class Answers(BaseModel):
    """A picture a file, in the order in which they were sent."""

    model: Served
    calibrated: bool = Field(description="whether the logits were divided by a fitted temperature")
    pictures: list[Picture]


class Unanswered(Refused):
    """No file of a request can be read."""

    pictures: list[Picture] | None = None


class State(BaseModel):
    """Whether the server is healthy and ready."""

    status: str = Field(examples=["ok"])


class Model(BaseModel):
    """The model that is served: what its file says of it, its digest, and what was compared when it was exported."""

    model_config = ConfigDict(extra="allow")

    classes: list[str]
    origin: dict[str, Any]
    weights: dict[str, Any]
    numbers: list[dict[str, Any]] | None = Field(
        None,
        description="its measured numbers, by split and label set, with 95 % intervals; null in earlier exports",
        examples=[
            [
                {
                    "split": "test",
                    "labels": None,
                    "n": 652,
                    "protocol": "confirmatory",
                    "top1": {"value": 0.84, "low": 0.81, "high": 0.866},
                }
            ]
        ],
    )
    onnx_sha256: str
    proof: dict[str, Any]
    limits: dict[str, float]


JSON = "application/json"
ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "what the model says about each file; those that cannot be read have an `error` instead",
        "content": {
            JSON: {
                "example": {
                    "model": {"run": "low_lr", "checkpoint_sha256": "9ec0bc65"},
                    "calibrated": True,
                    "pictures": [
                        {
                            "image": "one.jpg",
                            "classes": [
                                {"class": "001.Black_footed_Albatross", "probability": 0.93},
                                {"class": "002.Laysan_Albatross", "probability": 0.05},
                            ],
                            "none_of_these": False,
                            "prediction_set": ["001.Black_footed_Albatross"],
                        },
                        {"image": "two.jpg", "error": "not a picture, or of an unknown format"},
                    ],
                }
            }
        },
    }
}
"""of /predict, for OpenAPI"""


def body(limits: Limits) -> dict[str, Any]:
    """The request body of /predict, for OpenAPI."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": limits.files,
        "description": f"picture files: at most {limits.request_bytes:,} bytes in all, "
        f"and {limits.pixels:,} pixels each",
    }
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: files},
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals that a path answers with, for OpenAPI."""
    words = {
        400: "the request is damaged",
        401: "the token is missing or wrong",
        408: "the request has not arrived in time",
        413: "too many bytes or pixels",
        415: "no multipart/form-data",
        422: "no picture, too many files, or a wrong parameter",
        503: "busy, or shutting down: send it again after Retry-After seconds",
    }
    kinds = {413: Unanswered, 422: Unanswered}
    return {
        status: {
            "model": kinds.get(status, Refused),
            "description": words[status],
            "content": {JSON: {"example": {"error": words[status]}}},
        }
        for status in statuses
    }
