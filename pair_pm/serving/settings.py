"""What a service allows: limits of a request, of the queue, and of time; each a flag of the command line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        body_bytes: Of a request's body.
        responses: To one conversation.
        messages: Of one conversation.
        pairs: Of one request for many comparisons, and groups of one for rewards.
        request_tokens: That one request may feed, all its prompts together.
        requests: Under way together; more are told to come back.
        request_timeout_s: From the end of a request's body to its answer.
        body_timeout_s: For a request's body to come in.
    """

    body_bytes: int = 4 * 2**20
    responses: int = 64
    messages: int = 256
    pairs: int = 1024
    request_tokens: int = 2**20
    requests: int = 256
    request_timeout_s: float = 60.0
    body_timeout_s: float = 30.0


@dataclass(frozen=True)
class Settings:
    """A service beyond its model and limits.

    Attributes:
        model_name: What answers call the model.
        api_key: What requests must carry; "" for none.
        allowed_origins: Web pages of other origins that may ask.
        batch_window_s: How long the first prompts after a pause wait for company.
        log_prompts: Whether the log may show what requests say.
        limits: See there.
    """

    model_name: str
    api_key: str = ""
    allowed_origins: tuple[str, ...] = ()
    batch_window_s: float = 0.003
    log_prompts: bool = False
    limits: Limits = Limits()
