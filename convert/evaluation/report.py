"""report.json, report.html and confusion.png of a proof, as files for the bundle."""

import base64
from pathlib import Path
from typing import Any

import cv2
import jinja2
import msgspec
import numpy as np

from convert.data.frames import decoded
from convert.evaluation import metrics
from convert.evaluation.charts import confusion_png
from convert.evaluation.results import Evaluation, class_names, details

JSON, HTML, CONFUSION = "report.json", "report.html", "confusion.png"
TEMPLATE = Path(__file__).with_name("report.html")
THUMBNAIL = 220
# Beyond these the page would be slow to open; report.json has them all.
MAX_ROWS = 2000


def files(proof: Evaluation) -> dict[str, bytes]:
    """Return the report's files by their path in the bundle. Raises ConvertError if a frame can't
    be read any more."""
    found = details(proof)
    picture = _confusion(proof)
    text = msgspec.json.format(msgspec.json.encode(found), indent=1)
    return {
        JSON: text + b"\n",
        CONFUSION: picture,
        HTML: page(proof, found, picture).encode(),
    }


def template_of(file: Path) -> jinja2.Template:
    """A page's template, with the style and the filters `percent` and `uri` of all reports."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader([file.parent, TEMPLATE.parent]),
    )
    environment.filters |= {"percent": _percent, "uri": _uri}
    return environment.get_template(file.name)


def page(proof: Evaluation, found: dict[str, Any], confusion: bytes) -> str:
    """Render one HTML page that contains its styles and pictures."""
    template = template_of(TEMPLATE)
    worst = [
        {**found["per_frame"][i], "picture": thumbnail(proof, i)} for i in found["most_different"]
    ]
    return template.render(
        r=found,
        result=found["models"]["result"],
        reference=found["models"].get("float"),
        confusion=confusion,
        worst=worst,
        max_rows=MAX_ROWS,
    )


def thumbnail(proof: Evaluation, index: int) -> bytes:
    """Return the frame as a JPEG whose longer side has at most THUMBNAIL pixels."""
    pixels = decoded(proof.frames[index].path, proof.recipe)
    ratio = min(1.0, THUMBNAIL / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * ratio)), max(1, round(pixels.shape[0] * ratio))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return bytes(data)


def _confusion(proof: Evaluation) -> bytes:
    """Return the matrix of the classes that occur."""
    predicted = np.asarray(proof.result.probabilities.argmax(axis=1), np.intp)
    matrix = metrics.confusion(proof.truth, predicted, len(proof.labels))
    shown = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    names = class_names(proof.labels)
    return confusion_png(matrix[np.ix_(shown, shown)], [names[i] for i in shown])


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
