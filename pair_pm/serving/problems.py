"""What a request can be answered with instead of a result: a status, a stable type, and a message that says why.

    400  invalid_data         a conversation or response that the format cannot hold
    400  invalid_option       options that contradict each other, or that this service was not started for
    400  invalid_http         no request of HTTP/1.1, or a body in very many chunks
    400  prompt_too_long      a comparison exceeds what the model was made or trained for
    401  unauthorized         no API key, or another one
    404  not_found            no such path
    405  method_not_allowed   no such method of this path
    408  body_timeout         the request's body does not come
    413  limit_exceeded       more than the service's limits allow
    415  not_json             a body that is not declared as JSON
    421  unknown_host         asked under a name that is not this service's
    422  malformed            not JSON, or not of the documented shape
    429  too_many_requests    as many as the service takes are under way; try again after Retry-After
    500  internal             a defect of the service; its log has more
    503  engine_unavailable   the weights cannot be asked now; try again after Retry-After
    503  draining             the service is stopping; try again after Retry-After
    503  too_many_connections  more than the service keeps are open; try again after Retry-After
    504  deadline_exceeded    no answer within the time that a request may take

Requests change nothing, so that any of them can be sent again: after 429 and 503 when Retry-After says, and after 504
or a broken connection.
"""

import logging
from collections.abc import Mapping

from pair_pm.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    LabelTokenError,
    PairPMError,
    PromptTooLongError,
)

logger = logging.getLogger(__name__)


class Problem(Exception):
    """What keeps a request from a result.

    Args:
        status: Of HTTP.
        type: The stable name of its kind.
        message: `<what was found>; <what is required>[; <what to do>]`.
        where: The part of the request that it is about.
        headers: To go with it.
    """

    def __init__(self, status: int, type: str, message: str, where: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.type = type
        self.message = message
        self.where = where
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON can hold it."""
        return {"type": self.type, "message": self.message, "where": self.where}


def exceed(where: str, found: object, most: object, flag: str) -> Problem:
    """Return the problem of a limit, which a flag of the service sets."""
    return Problem(413, "limit_exceeded", f"{found}; at most {most} are required ({flag} of the service)", where)


def describe_error(error: PairPMError, where: str = "") -> Problem:
    """Return what a client is told of an error of the library."""
    if isinstance(error, EngineError):
        logger.warning("%s", error)  # it names the servers behind, which are not the client's affair
        return Problem(
            503, "engine_unavailable", "no server of the weights answers; one is required; try again", where, retry(2)
        )
    if isinstance(error, CheckpointError):
        return Problem(
            503, "engine_unavailable", "the model gives no finite number; its weights are damaged", where, retry(60)
        )
    if isinstance(error, PromptTooLongError):
        return Problem(400, "prompt_too_long", str(error), where)
    if isinstance(error, ConfigError):
        return Problem(400, "invalid_option", str(error), where)
    assert isinstance(error, LabelTokenError | ValueError), error
    return Problem(400, "invalid_data", str(error), where)


def retry(after_s: float) -> dict[str, str]:
    """Return the header that says when to try again."""
    return {"Retry-After": str(min(60, max(1, round(after_s))))}
