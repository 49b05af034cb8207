"""The server's routes: what the page asks, and the answers as JSON and images."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.review.beside import Beside
from prelabel.pipeline.review.filters import Filter
from prelabel.pipeline.review.guard import Guard
from prelabel.pipeline.review.images import Pictures
from prelabel.pipeline.review.index import Index
from prelabel.pipeline.review.labels import labels_of
from prelabel.pipeline.review.units import Units
from prelabel.pipeline.review.verdicts import Posted, Verdicts
from prelabel.schemas.errors import PrelabelError, SourceError

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 2**24
"""Of what is posted."""
BROWSERS_KEEP = {"Cache-Control": "private, max-age=3600"}


@dataclass(frozen=True)
class Review:
    """All that the routes need.

    Attributes:
        dataset, units, index, verdicts, pictures: of the job
        stop: ends what is under way
        reviewer: whose verdicts these are
        truth, other: what is shown beside the labels
        key: of this start of the server; pictures have it in their URLs, since browsers keep them, and the next job
            may be reviewed at the same address
    """

    dataset: LabelDataset
    units: Units
    index: Index
    verdicts: Verdicts
    pictures: Pictures
    stop: Callable[[], None]
    reviewer: str
    truth: Beside | None = None
    other: Beside | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(8))


class Slice(BaseModel):
    """Which part of an answer."""

    model_config = ConfigDict(extra="forbid")

    offset: int = Field(0, ge=0, lt=2**53)
    limit: int = Field(100, ge=1, le=1_000)


class Small(BaseModel):
    """How a thumbnail is to be drawn."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    key: str = ""
    size: int = Field(256, ge=16, le=512)
    category: tuple[int, ...] = ()
    min_score: float = 0.0


def job(review: Review, _: Request) -> Any:
    """What the job is."""
    record = review.dataset.record
    return {
        "key": review.key,
        "url": review.dataset.url,
        "models": [model["name"] for model in record.models],
        "tasks": record.tasks,
        "tables": record.tables,
        "categories": [_category(one) for one in review.dataset.categories.to_coco()],
        "images": review.units.images,
        "is_complete": review.dataset.is_complete,
        "reviewer": review.reviewer,
        "ready": review.index.ready.is_set(),
        "truth": review.truth is not None,
        "other": review.other and review.other.name,
    }


def _category(entry: dict[str, Any]) -> dict[str, Any]:
    blank: dict[str, Any] = {"supercategory": None, "keypoints": [], "skeleton": []}
    return blank | entry | {"isthing": bool(entry.get("isthing", 1))}


def images(review: Review, request: Request) -> Any:
    """A slice of the images that a filter lets through."""
    values = _query(request)
    part = Slice.model_validate({name: values.pop(name) for name in Slice.model_fields if name in values})
    asked = Filter.model_validate(values)
    if asked.is_everything:  # which needs no index
        total, ids = review.units.images, review.units.page(part.offset, part.limit)
    else:
        found = review.index.find(asked)
        total, ids = len(found), found[part.offset : part.offset + part.limit]
    return {"total": total, "images": review.index.images(ids)}


def image(review: Review, request: Request) -> Any:
    """All that is known of an image."""
    image_id = _image_id(review, request)
    row = review.units.image(image_id)
    return (
        {"image": row}
        | labels_of(review.units, image_id)
        | {
            "labels": row["labels"] or [],
            "reviews": review.verdicts.of(image_id),
            "truth": review.truth and review.truth.labels(row),
            "other": review.other and review.other.labels(row),
        }
    )


def file(review: Review, request: Request) -> Response:
    """The image for the browser."""
    data, kind = review.pictures.for_browser(review.units.image(_image_id(review, request)))
    return Response(data, media_type=kind, headers=BROWSERS_KEEP)


def thumbnail(review: Review, request: Request) -> Response:
    """The image, small, with boxes."""
    small = Small.model_validate(_query(request))
    image_id = _image_id(review, request)
    data = review.pictures.thumbnail(image_id, small.size, small.category, small.min_score)
    return Response(data, media_type="image/jpeg", headers=BROWSERS_KEEP)


def progress(review: Review, _: Request) -> Any:
    """How many images have which verdict."""
    return review.verdicts.progress()


async def verdicts(request: Request) -> Response:
    """Writes what is posted."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise HTTPException(400, f"more than {MOST_BYTES} bytes at once")
    return await run_in_threadpool(_write, request.app.state.review, data)


def _write(review: Review, data: bytes) -> Response:
    posted = Posted.model_validate_json(data)
    review.verdicts.write(review.reviewer, posted)
    return _json({"written": len(posted.reviews)})


def _query(request: Request) -> dict[str, Any]:
    """The parameters of a URL; `category` may be there several times, and what is blank is not said."""
    values: dict[str, Any] = {name: value for name, value in request.query_params.items() if value.strip()}
    if "category" in values:
        values["category"] = sorted(set(request.query_params.getlist("category")))
    return values


def _image_id(review: Review, request: Request) -> int:
    image_id: int = request.path_params["image_id"]
    if image_id >= 2**53 or image_id not in review.units:
        raise HTTPException(404, f"there is no image {image_id}")
    return image_id


def _json(value: Any, code: int = 200) -> Response:
    data = orjson.dumps(value, option=orjson.OPT_NAIVE_UTC)
    return Response(data, code, media_type="application/json", headers={"Cache-Control": "no-store"})


def _answering(answer: Callable[[Review, Request], Any]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        answered = answer(request.app.state.review, request)
        return answered if isinstance(answered, Response) else _json(answered)

    return endpoint


def _index_page(_: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


def _told(_: Request, error: Exception) -> Response:
    """What went wrong, in one line."""
    if isinstance(error, HTTPException):
        return _json({"error": error.detail}, error.status_code)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return _json({"error": f"{where}: {first['msg']}" if where else first["msg"]}, 400)
    return _json({"error": str(error)}, 410 if isinstance(error, SourceError) else 400)


def app_of(review: Review, token: str | None = None, host: str = "localhost") -> Starlette:
    """The application; a token is needed where others can reach it, else it is reached by the name of `host`."""
    answers = {
        "/api/job": job,
        "/api/images": images,
        "/api/images/{image_id:int}": image,
        "/api/images/{image_id:int}/file": file,
        "/api/images/{image_id:int}/thumbnail": thumbnail,
        "/api/progress": progress,
    }
    routes = [
        Route("/", _index_page),
        *(Route(path, _answering(answer)) for path, answer in answers.items()),
        Route("/api/verdicts", verdicts, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    errors = dict.fromkeys((HTTPException, ValidationError, PrelabelError), _told)
    app = Starlette(routes=routes, middleware=[Middleware(Guard, token=token, host=host)], exception_handlers=errors)
    app.state.review = review
    return app
