"""What MLflow runs when it loads a logged model: MLflow stores this file beside the checkpoint.

The checkpoint is read by the class that the model's configuration names, so nothing is pickled; the package must be
installed where the model is loaded (``mlflow models serve --env-manager local``). Calls take a mapping of named
arrays, as the signature tells.
"""

from pathlib import Path
from pydoc import locate
from typing import Any, cast

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext


class Checkpoint(PythonModel):
    """A checkpoint as an MLflow model."""

    # MLflow would make a schema of the hints of `predict`, or ask for them; the signature says more than they could.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Builds the model that the checkpoint describes."""
        name = context.model_config["loader"]
        loader = cast(Any, locate(name))
        if loader is None:
            raise ValueError(f"{name} cannot be imported; install the version of distillery that logged this model")
        self._model = loader(Path(context.artifacts["checkpoint"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Calls the model with the named arrays."""
        return self._model(**model_input)


mlflow.models.set_model(Checkpoint())
