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
from convert.evaluation.charts import confusion_png, search_png
from convert.evaluation.results import Evaluation, class_names, details
from convert.evaluation.verdicts import PICTURES_MAX, VerdictProof
from convert.folder_check import result as folder_result
from convert.folder_check.result import SHOWN, FolderCheck
from convert.search import trail as search_trail
from server.recognition.drawing import Overlay, draw
from server.recognition.engines.litert import runtime
from server.recognition.frame import Pixels
from server.recognition.manifest import Recipe
from server.recognition.recognizer import Recognizer

JSON, HTML, CONFUSION = "report.json", "report.html", "confusion.png"
# Of a model that was searched for: everything that was tried.
SEARCH = "search.csv"
TEMPLATE = Path(__file__).with_name("report.html")
FOLDER_TEMPLATE = Path(__file__).with_name("folder.html")
VERDICT_TEMPLATE = Path(__file__).with_name("verdict.html")
THUMBNAIL = 220
PAIRS_SHOWN = 12
# Beyond these the page would be slow to open; report.json has them all.
MAX_ROWS = 2000


def files(proof: Evaluation) -> dict[str, bytes]:
    """Return the report's files by their path in the bundle. Raises ConvertError if a frame can't
    be read any more."""
    found = details(proof)
    picture = _confusion(proof)
    text = msgspec.json.format(msgspec.json.encode(found), indent=1)
    tried = {SEARCH: search_trail.csv_text(proof.search).encode()} if proof.search else {}
    return {
        JSON: text + b"\n",
        CONFUSION: picture,
        HTML: page(proof, found, picture).encode(),
        **tried,
    }


def verdict_files(
    model: Recognizer, proof: VerdictProof, verdict: dict[str, Any]
) -> dict[str, bytes]:
    """Return the files of a report on the verdicts of a loaded model alone. verdict: the proof's
    details. Raises ConvertError if a frame can't be read any more."""
    found = {
        "format": 1,
        "title": f"{model.manifest.name} {model.manifest.version}",
        "task": model.manifest.task,
        "runtime": runtime(),
        "frames": len(proof.frames),
        "verdict": verdict,
    }
    exact = msgspec.structs.replace(model.recipe, decode="exact")

    def picture(index: int) -> bytes:
        overlay = model.task.overlay(proof.answers[index])
        drawn = Overlay(marks=overlay.marks, heats=overlay.heats)
        return small_jpeg(draw(decoded(proof.frames[index].path, exact), drawn))

    text = msgspec.json.format(msgspec.json.encode(found), indent=1)
    html = template_of(VERDICT_TEMPLATE).render(
        r=found,
        policy=msgspec.json.encode(verdict["policy"]).decode(),
        wrong=[
            {**each, "picture": picture(i)}
            for i, each in list(zip(proof.wrong, verdict["wrong"], strict=True))[:PICTURES_MAX]
        ],
    )
    return {JSON: text + b"\n", HTML: html.encode()}


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
    if proof.verdicts is not None:
        places, wrong = list(proof.verdicts.wrong), found["verdict"]["wrong"]
    else:
        places, wrong = _wrong_labels(found["per_frame"])
    shown = list(zip(places, wrong, strict=True))[:PICTURES_MAX]
    return template.render(
        r=found,
        result=found["models"]["result"],
        reference=found["models"].get("float"),
        confusion=confusion,
        worst=worst,
        folder=folder_pictures(proof.folder, proof.recipe) if proof.folder else None,
        search=search_png(proof.search) if proof.search else None,
        training=search_trail.training,
        all_wrong=wrong,
        wrong=[{**each, "picture": thumbnail(proof, i)} for i, each in shown],
        max_rows=MAX_ROWS,
        error_bins=metrics.ERROR_BINS,
    )


def _wrong_labels(frames: list[dict[str, Any]]) -> tuple[list[int], list[dict[str, Any]]]:
    """Return frames whose label is wrong, of a model without verdicts, the surest first."""
    places = [i for i, each in enumerate(frames) if not each["result"]["right"]]
    places.sort(key=lambda i: -frames[i]["result"]["probability"])
    none = {"kind": "label", "score": None, "verdict": None, "reason": None}
    return places, [{**frames[i], **frames[i]["result"], **none} for i in places]


def folder_pictures(check: FolderCheck, recipe: Recipe) -> dict[str, Any]:
    """Return the thumbnails of the first suspected labels and contradictory pairs of a folder, as
    JPEG. Raises ConvertError if a frame can't be read any more."""

    def picture(frame: int) -> bytes:
        return small_jpeg(decoded(check.frames[frame].path, recipe))

    pairs = (*check.contradictory, *(p for p in check.across if p not in check.contradictory))
    return {
        "suspects": [picture(each.frame) for each in (check.suspects or ())[:SHOWN]],
        "pairs": [
            {
                "pictures": [picture(frame) for frame in pair],
                "names": [check.name(frame) for frame in pair],
                "labels": [check.classes[check.frames[frame].label] for frame in pair],
            }
            for pair in pairs[:PAIRS_SHOWN]
        ],
        "untold": folder_result.UNTOLD,
        "more_pairs": len(pairs[PAIRS_SHOWN:]),
    }


def write_folder_report(out: Path, check: FolderCheck, recipe: Recipe) -> None:
    """Write report.json and report.html on a folder into the folder `out`. Raises ConvertError if
    a frame can't be read any more."""
    found = folder_result.details(check)
    html = template_of(FOLDER_TEMPLATE).render(
        r={"title": "Check of the photographs"}, f=found, folder=folder_pictures(check, recipe)
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / JSON).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    (out / HTML).write_text(html, "utf-8")


def thumbnail(proof: Evaluation, index: int) -> bytes:
    """Return the frame as a JPEG whose longer side has at most THUMBNAIL pixels."""
    return small_jpeg(decoded(proof.frames[index].path, proof.recipe))


def small_jpeg(pixels: Pixels) -> bytes:
    """Return RGB pixels as a JPEG whose longer side has at most THUMBNAIL pixels."""
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
