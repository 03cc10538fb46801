"""Errors that a user can cause, each also the builtin it resembles.

    PairPMError
    ├── DataError            (ValueError)         preference data, or a table of it, cannot be read as such
    ├── MissingPathError     (FileNotFoundError)  a named file, folder or checkpoint is not there
    ├── OutputExistsError    (FileExistsError)    writing would overwrite something that was not asked for
    ├── UnwritableError      (OSError)            results cannot be written: no room, or no permission
    ├── TemplateError        (ValueError)         the chat template cannot carry the A/B format safely
    │   └── LabelTokenError  (ValueError)         "A" and "B" are not one differing token in it
    ├── PromptTooLongError   (ValueError)         a prompt exceeds what the model was made or trained for
    ├── RecipeError          (ValueError)         pair_pm.json does not describe the model it lies beside
    ├── CheckpointError      (ValueError)         a checkpoint is of the wrong kind, or its weights are not whole
    ├── ConfigError          (ValueError)         a configuration or an option asks for what cannot be done
    └── EngineError          (ConnectionError)    a server that the weights run on cannot be used, or not any more

Messages follow one form: ``<where>: <what was found>; <what is required>[; <what to do>]``.
"""


class PairPMError(Exception):
    """Base of everything that user input can raise; only the scripts catch it."""


class DataError(PairPMError, ValueError):
    """Preference data, or a table of it, cannot be read as such."""


class MissingPathError(PairPMError, FileNotFoundError):
    """A named file, folder or checkpoint is not there."""


class OutputExistsError(PairPMError, FileExistsError):
    """Writing would overwrite something that was not asked for."""


class UnwritableError(PairPMError, OSError):
    """Results cannot be written: no room, or no permission."""


class TemplateError(PairPMError, ValueError):
    """The chat template cannot carry the A/B format safely."""


class LabelTokenError(TemplateError):
    """The two labels are not exactly one differing token in this chat template and tokenizer."""


class PromptTooLongError(PairPMError, ValueError):
    """A prompt exceeds what the model was made or trained for."""


class RecipeError(PairPMError, ValueError):
    """pair_pm.json does not describe the model that it lies beside."""


class CheckpointError(PairPMError, ValueError):
    """A checkpoint is of the wrong kind, or its weights are not whole."""


class ConfigError(PairPMError, ValueError):
    """A training configuration or an option asks for what cannot be done."""


class EngineError(PairPMError, ConnectionError):
    """A server that the weights run on cannot be used, or not any more."""
