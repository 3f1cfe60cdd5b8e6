"""The paths of the server."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from pipeline import __version__
from pipeline.serving import uploads
from pipeline.serving.decoding import Unreadable
from pipeline.serving.gate import METRICS, Gate, refused
from pipeline.serving.limits import Refusal
from pipeline.serving.schema import ANSWERED, Answers, Model, State, body, refusals
from pipeline.serving.service import Service

MOST_CLASSES = 10_000


def application(service: Service, token: str | None, *, open_metrics: bool = False) -> ASGIApp:
    """The ASGI application behind its gate.

    Args:
        token: that a request has to show; None: none is asked for.
        open_metrics: whether /metrics needs none, either.
    """
    app = FastAPI(
        title="Plumage",
        version=__version__,
        description=f"Names the classes of pictures, with the run {service.identity['run']!r}.",
        docs_url=None,
        redoc_url=None,  # both load scripts from elsewhere
        responses=refusals(*([401] if token is not None else []), 503),
    )
    _say_refusals(app)
    bearer = HTTPBearer(auto_error=False)  # for OpenAPI; the gate looks at it
    locked = [] if token is None else [Security(bearer)]
    _add_predict(app, service, locked)
    _add_facts(app, service, locked)
    _add_metrics(app, service, [] if open_metrics else locked)
    _add_page(app, service.model.page)
    paths = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    return Gate(app, service, paths, token, open_metrics=open_metrics)


def _say_refusals(app: FastAPI) -> None:
    """One form for all: {"error": a sentence}."""

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> JSONResponse:
        return refused(refusal)

    @app.exception_handler(HTTPException)
    async def no_such_path(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> JSONResponse:  # its traceback is in the log
        return JSONResponse({"error": "the server failed on this request; its log says why"}, 500)


def _add_predict(app: FastAPI, service: Service, locked: Sequence[Depends]) -> None:
    @app.post(
        "/predict",
        summary="The most likely classes of pictures",
        response_model=Answers,
        responses=ANSWERED | refusals(400, 408, 413, 415, 422),
        dependencies=locked,
        openapi_extra=body(service.limits),
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST_CLASSES, description="number of classes of a picture")] = 5,
        heat_maps: Annotated[bool, Query(description="what in the picture supports each class")] = False,
    ) -> JSONResponse:
        with service.load.request() as held:
            files = await uploads.read(request, service.limits, held)
            found = await service.answers(files, top, heat_maps=heat_maps)
        named = [
            {"image": file.name, **({"error": one.reason} if isinstance(one, Unreadable) else one)}
            for file, one in zip(files, found, strict=True)
        ]
        faults = [one for one in found if isinstance(one, Unreadable)]
        request.scope["state"]["said"] = {"pictures": len(files), "unreadable": len(faults)}
        if len(faults) == len(found):
            return JSONResponse(
                {"error": f"no picture: {faults[0].reason}", "pictures": named}, faults[0].status
            )
        calibrated = service.model.facts["temperature"] is not None
        return JSONResponse({"model": service.identity, "calibrated": calibrated, "pictures": named})


def _add_facts(app: FastAPI, service: Service, locked: Sequence[Depends]) -> None:
    model = service.model
    limits = dataclasses.asdict(service.limits)
    facts = {
        "numbers": None,
        **model.facts,
        "onnx_sha256": model.sha256,
        "proof": model.proof,
        "limits": limits,
    }

    @app.get("/model", summary="What is served", response_model=Model, dependencies=locked)
    async def describe() -> JSONResponse:
        return JSONResponse(facts)

    @app.get("/healthz", summary="Whether the process can answer", response_model=State)
    async def health() -> JSONResponse:
        return _state(service.healthy)

    @app.get("/readyz", summary="Whether requests are welcome: not before its end", response_model=State)
    async def readiness() -> JSONResponse:
        return _state(service.ready)


def _add_metrics(app: FastAPI, service: Service, locked: Sequence[Depends]) -> None:
    @app.get(
        METRICS,
        summary="Counters in the text format of Prometheus",
        response_class=PlainTextResponse,
        dependencies=locked,
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI, page: str) -> None:
    @app.get("/", summary="A page to ask with", response_class=HTMLResponse)
    async def front() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": "frame-ancestors 'none'"})


def _state(good: bool) -> JSONResponse:
    return JSONResponse({"status": "ok"}) if good else JSONResponse({"status": "ending"}, 503)
