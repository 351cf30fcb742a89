"""How models are named in paths."""

from flask import Flask
from werkzeug.routing import BaseConverter


class ModelName(BaseConverter):
    """`<model:name>`: one path segment without a colon, which TensorFlow Serving puts a verb
    after."""

    regex = "[^/:]+"
    part_isolating = True


def name_models(app: Flask) -> None:
    """Makes `<model:...>` usable in the routes of `app`."""
    app.url_map.converters["model"] = ModelName
