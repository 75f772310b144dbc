"""Model, training, evaluation, export and inference: a module for each verb that a user types."""
