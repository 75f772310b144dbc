"""Model, training, evaluation, export and inference: a module for each verb that a user types."""

import pipelines  # noqa: F401 -- it sees to Ctrl-C in the first moments
