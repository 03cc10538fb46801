"""The HTTP API: paths, what they take and give, and its document at /docs, which loads nothing from elsewhere."""

import asyncio
import re
from collections.abc import Coroutine, Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from pair_pm import __version__
from pair_pm.errors import DataError, PairPMError
from pair_pm.group_rewards import COUNTED
from pair_pm.policy_template import PolicyTemplate
from pair_pm.scoring import Comparison, PairScorer, can_be_rendered
from pair_pm.serving import schemas
from pair_pm.serving.gate import OPEN_PATHS, Gate, HangUp
from pair_pm.serving.get_reward import GetRewardAnswer, GetRewardRequest, reward_queries
from pair_pm.serving.page import answer_page
from pair_pm.serving.problems import Problem, describe_error, exceed, retry
from pair_pm.serving.service import Service
from pair_pm.serving.settings import Settings

_STATIC = "/static-offline-docs"


def _document(*statuses: int) -> dict[int, dict]:
    return {status: {"model": schemas.ProblemAnswer} for status in statuses}


_REFUSALS = _document(401, 408, 413, 415, 422, 429, 504)


def create_app(
    scorer: PairScorer, settings: Settings, policy_template: PolicyTemplate | None = None, *, is_local: bool = True
) -> FastAPI:
    """Return the service as an ASGI application; its `state.service` is the `Service`.

    Args:
        scorer: Of the model.
        settings: What is allowed.
        policy_template: Reads what trainers send to /get_reward.
        is_local: Whether only this machine's own names are answered to: without a key, a web page of another name that
            points here could ask.
    """
    service = Service(scorer, settings)
    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,  # to what the Host header says
        title="pair_pm",
        version=__version__,
        description="Which of two responses is better, and in which order several are, by a pairwise preference model.",
        static_url=_STATIC,
        responses=_document(400, 421, 500, 503),  # whatever is asked
        # It checks nothing, which the gate has done: it gives the document at /docs its field for the key.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if settings.api_key else [],
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    app.state.service = service
    app.add_route("/", answer_page, include_in_schema=False)
    _add_comparisons(app, service)
    _add_rewards(app, service, policy_template)
    _add_reports(app, service)
    for kind, handle in (
        (Problem, _answer_problem),
        (PairPMError, _answer_error),
        (RequestValidationError, _answer_malformed),
        (HTTPException, _answer_http_error),
    ):
        app.add_exception_handler(kind, handle)
    paths = [*OPEN_PATHS, *(route.path for route in app.routes if hasattr(route, "path"))]
    app.add_middleware(Gate, service=service, paths=paths, open_folder=f"{_STATIC}/", is_local=is_local)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app


def _add_comparisons(app: FastAPI, service: Service) -> None:
    name, limits = service.settings.model_name, service.settings.limits

    @app.post("/v1/compare", response_model=schemas.CompareAnswer, responses=_REFUSALS, tags=["comparisons"])
    async def compare(body: schemas.CompareRequest, request: Request):
        """Which of two responses is better: both orders, averaged."""
        _check_messages([body], limits.messages)
        [result] = await _finish(service, request, service.compare_each([(body.to_context(), *body.responses)]))
        if isinstance(result, PairPMError):
            raise describe_error(result, _locate_fault(body))
        return JSONResponse({**vars(result), "tokens": sum(result.prompt_tokens), "model": name})

    @app.post("/v1/compare/batch", response_model=schemas.BatchAnswer, responses=_REFUSALS, tags=["comparisons"])
    async def compare_batch(body: schemas.BatchRequest, request: Request):
        """Many comparisons; one that cannot be made has its error in the place of its verdict."""
        if len(body.comparisons) > limits.pairs:
            raise exceed("comparisons", len(body.comparisons), limits.pairs, "--max-pairs")
        _check_messages(body.comparisons, limits.messages)
        items = [(one.to_context(), *one.responses) for one in body.comparisons]
        results = await _finish(service, request, service.compare_each(items))
        tokens = sum(sum(result.prompt_tokens) for result in results if isinstance(result, Comparison))
        return JSONResponse(
            {
                "results": [
                    {"error": describe_error(result, _locate_fault(asked, f"comparisons.{place}")).to_dict()}
                    if isinstance(result, PairPMError)
                    else vars(result)
                    for place, (asked, result) in enumerate(zip(body.comparisons, results, strict=True))
                ],
                "tokens": tokens,
                "model": name,
            }
        )

    @app.post("/v1/rank", response_model=schemas.RankAnswer, responses=_REFUSALS, tags=["comparisons"])
    async def rank(body: schemas.RankRequest, request: Request):
        """Responses from best to worst, with Bradley-Terry strengths."""
        _check_messages([body], limits.messages)
        _check_responses("responses", body.responses, limits.responses)
        options = {"budget": body.budget, "orders": body.orders, "resamples": body.resamples}
        ranking = service.rank(body.to_context(), body.responses, body.method, body.seed, **options)
        try:
            ranking = await _finish(service, request, ranking)
        except DataError as error:
            raise describe_error(error, _locate_fault(body)) from error
        return JSONResponse({**ranking.to_dict(), "model": name})


def _add_rewards(app: FastAPI, service: Service, policy_template: PolicyTemplate | None) -> None:
    limits = service.settings.limits

    @app.post("/v1/rewards", response_model=schemas.RewardsAnswer, responses=_REFUSALS, tags=["rewards"])
    async def rewards(body: schemas.RewardsRequest, request: Request):
        """Rewards for the completions of each prompt: centred Bradley-Terry log-strengths, as `group_reward` gives."""
        if len(body.groups) > limits.pairs:
            raise exceed("groups", len(body.groups), limits.pairs, "--max-pairs")
        _check_messages(body.groups, limits.messages)
        for place, group in enumerate(body.groups):
            _check_responses(f"groups.{place}.completions", group.completions, limits.responses)
        groups = [(group.to_context(), group.completions) for group in body.groups]
        by_group, counts, tokens = await _finish(
            service, request, service.reward(groups, body.method, body.on_overlong, body.seed)
        )
        return JSONResponse(
            {
                "rewards": by_group,
                "counts": {name: counts[name] for name in COUNTED},
                "method": body.method,
                "tokens": tokens,
                "model": service.settings.model_name,
            }
        )

    @app.post("/get_reward", response_model=GetRewardAnswer, responses=_REFUSALS, tags=["rewards"])
    async def get_reward(body: GetRewardRequest, request: Request):
        """Rewards for OpenRLHF's remote reward client: each response against its reference answer, the label."""
        return JSONResponse(await _finish(service, request, reward_queries(service, policy_template, body)))


def _add_reports(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", response_model=schemas.ModelAnswer, responses=_document(401), tags=["service"])
    async def model():
        """The model's recipe card, the versions here, and the limits of a request."""
        return JSONResponse(service.describe_model())

    @app.get("/health", response_model=schemas.StatusAnswer, tags=["service"])
    async def health():
        """Whether the process is alive."""
        return JSONResponse({"status": "alive"})

    @app.get("/ready", response_model=schemas.StatusAnswer, tags=["service"])
    async def ready():
        """Whether a pair can be scored now."""
        if (refusal := service.find_refusal()) is not None and refusal.status == 503:
            raise refusal
        await service.check_ready()
        return JSONResponse({"status": "ready"})

    text = {200: {"content": {"text/plain": {}}}}

    @app.get("/metrics", response_class=Response, responses=text | _document(401), tags=["service"])
    async def metrics():
        """Load, speed, and how the verdicts are spread, for Prometheus."""
        return Response(service.measures.render(), media_type=CONTENT_TYPE_LATEST)


async def _finish(service: Service, request: Request, answer: Coroutine[Any, Any, Any]):
    """Return the answer, or stop working on it when the client leaves, its time is over, or the service ends."""
    timeout_s = service.settings.limits.request_timeout_s
    work = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_wait_for_hang_up(request))
    service.work.add(work)
    try:
        await asyncio.wait({work, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if work.cancelled():
            raise Problem(503, "draining", "the service had no time left; send it again", "", retry(1))
        if work.done():
            return work.result()
        if leaving.done():
            raise HangUp
        raise Problem(504, "deadline_exceeded", f"no answer within {timeout_s:g} s, which a request may take at most")
    finally:
        service.work.discard(work)
        work.cancel()
        leaving.cancel()
        # Before the answer goes out, so that nothing is computed for it after that; it retrieves late errors as well.
        await asyncio.gather(work, leaving, return_exceptions=True)


async def _wait_for_hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _locate_fault(asked: schemas.CompareRequest | schemas.RankRequest, where: str = "") -> str:
    """Return which part of a request cannot be rendered; all of it where only its length is too much."""
    context = asked.to_context()
    name = "prompt" if asked.messages is None else "messages"
    parts = [(name, context, "A response.")]  # the responses to another question: its length would count for each
    parts += [(f"responses.{place}", "A question?", text) for place, text in enumerate(asked.responses)]
    faults = (part for part, context, text in parts if not can_be_rendered(context, text))
    return ".".join(part for part in (where, next(faults, "")) if part)


def _check_messages(conversations: Sequence[schemas.Conversation], most: int) -> None:
    for conversation in conversations:
        if len(conversation.messages or ()) > most:
            raise exceed("messages", len(conversation.messages), most, "--max-messages")


def _check_responses(where: str, responses: Sequence[str], most: int) -> None:
    if len(responses) > most:
        raise exceed(where, len(responses), most, "--max-responses")


# ---- problems -------------------------------------------------------------------------------------------------------


async def _answer_problem(request: Request, problem: Problem) -> JSONResponse:
    return JSONResponse(problem.to_dict(), problem.status, problem.headers)


async def _answer_error(request: Request, error: PairPMError) -> JSONResponse:
    return await _answer_problem(request, describe_error(error))


async def _answer_malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        problem = Problem(422, "malformed", f"no JSON at character {first['loc'][-1]}; JSON is required", "body")
        return await _answer_problem(request, problem)
    where = ".".join(str(part) for part in first["loc"][1:])
    message = re.sub(r"^Value error, ", "", first["msg"])
    more = f" ({len(others)} more like it)" if others else ""
    return await _answer_problem(request, Problem(422, "malformed", f"{message}{more}", where[:200]))


async def _answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
    path = request.scope["path"][:100]  # its url would be built of the Host header, which may be none
    problem = {
        404: Problem(404, "not_found", f"no path {path!r}; one of those in /docs is required"),
        405: Problem(405, "method_not_allowed", f"{request.method[:20]}; a method of {path!r} in /docs is required"),
    }.get(
        error.status_code,
        Problem(422, "malformed", "the body cannot be read; JSON of the documented shape is required"),
    )
    problem.headers = dict(error.headers or {})
    return await _answer_problem(request, problem)
