"""What the service can be asked for, as an OpenAPI document and as a page made of it."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from typing import Any

from vankit.serving.models import LOWEST_SCORE
from vankit.serving.protocol import HEADER_LENGTH
from vankit.serving.query import LONGEST

Json = dict[str, Any]

_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_POSITIVE = {"type": "integer", "minimum": 1}
_NAME = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": _TEXT,
    "description": "As `GET /models` lists them.",
}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": _TEXT}


def _object(properties: Mapping[str, Any], *required: str) -> Json:
    return {"type": "object", "properties": dict(properties), "required": list(required or properties)}


def _list(of: Json, **limits: Any) -> Json:
    return {"type": "array", "items": of, **limits}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


_RLE = _object({"size": _list(_WHOLE), "counts": _TEXT})
_BOX = _list(_NUMBER, minItems=4, maxItems=4)
_LABEL = _object({"name": _TEXT, "index": _WHOLE, "score": _NUMBER})
_FOUND = {"name": _TEXT, "category_id": _WHOLE, "bbox": _BOX, "score": _NUMBER, "segmentation": _ref("Mask")}
_PICTURE = {"source": _TEXT, "width": _POSITIVE, "height": _POSITIVE, "error": _TEXT}
_TENSOR = {"name": _TEXT, "datatype": _TEXT, "shape": _list(_WHOLE)}

_SCHEMAS: Json = {
    "Error": _object({"error": _TEXT}),
    "Mask": _RLE | {"description": "COCO's compressed run-length code of a mask: height and width, and the counts."},
    "Label": _LABEL | {"description": "A class with its index in the network, and its score, 0 to 1."},
    "Object": _object(_FOUND, "name", "category_id", "bbox", "score")
    | {"description": "`bbox` is x, y, width and height in the picture's pixels."},
    "Segment": _object(
        {**_FOUND, "area": _WHOLE, "isthing": _WHOLE}, "name", "category_id", "segmentation", "area"
    ) | {"description": "`bbox`, `score` and `isthing` are a panoptic segmenter's."},
    "Picture": _object(
        {
            **_PICTURE,
            "labels": _list(_ref("Label")),
            "objects": _list(_ref("Object")),
            "segments": _list(_ref("Segment")),
        },
        "source",
    ) | {"description": "Of a classifier `labels`, of a detector `objects`, of a segmenter `segments`; or `error`."},
    "Predictions": _object(
        {"model": _TEXT, "version": _TEXT, "task": _TEXT, "pictures": _list(_ref("Picture"))}
    ),
    "ClassMap": _object({"name": _TEXT, "index": _WHOLE, "score": _NUMBER, "map": _list(_list(_NUMBER))}),
    "ExplainedPicture": _object(
        {
            **_PICTURE,
            "labels": _list(_ref("Label")),
            "region": _BOX,
            "maps": _list(_ref("ClassMap")),
        },
        "source",
    ) | {"description": "`region` is what the network saw of the picture: x, y, width, height in its pixels."},
    "Explanations": _object(
        {"model": _TEXT, "version": _TEXT, "task": _TEXT, "pictures": _list(_ref("ExplainedPicture"))}
    ),
    "Model": _object(
        {
            "name": _TEXT,
            "version": _TEXT,
            "task": {"type": "string", "enum": ["classify", "detect", "segment", "panoptic"]},
            "multi_label": {"type": "boolean"},
            "explains": {"type": "boolean"},
            "classes": _list(_TEXT),
        }
    ),
    "InferRequest": _object(
        {
            "id": _TEXT,
            "inputs": _list(
                _object({**_TENSOR, "data": _list({}), "parameters": {"type": "object"}}, *_TENSOR), minItems=1
            ),
            "outputs": _list(_object({"name": _TEXT, "parameters": {"type": "object"}}, "name")),
            "parameters": {"type": "object"},
        },
        "inputs",
    ),
    "InferAnswer": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "outputs": _list(_object({**_TENSOR, "data": _list({})}, *_TENSOR)),
        },
        "model_name",
        "outputs",
    ),
}  # fmt: skip

_REFUSALS = {
    "400": "The request is not of the form that is documented here.",
    "401": "A token is needed.",
    "403": "It comes from a page of another address.",
    "404": "There is no such model, or version of it.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, or has too many pictures.",
    "415": "The body is of a type that is not read.",
    "422": "The picture cannot be used, and why.",
    "429": "The queue is full; `Retry-After` says when to try again.",
    "503": "There was no answer within the time that is allowed.",
}


def _answers(good: Json, *refusals: str) -> Json:
    refused = {code: {"description": _REFUSALS[code], "content": _json(_ref("Error"))} for code in refusals}
    return {"200": {"description": "The answer.", "content": good}, **refused}


def _query(name: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _asking(summary: str, parameters: list[Json], good: Json, largest: int) -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"schema": _object({"file": _list({"type": "string", "format": "binary"}, minItems=1)})}
    images = _object({"images": _list({"type": "string", "format": "byte"}, minItems=1)})
    return {
        "post": {
            "summary": summary,
            "parameters": [_NAME, *parameters],
            "requestBody": {
                "required": True,
                "description": f"A picture's file as it is, several in a form, or base64 in JSON; {largest:,} bytes at "
                "most. A form or JSON with several gets an entry for each, in order.",
                "content": {
                    "application/octet-stream": binary,
                    "image/*": binary,
                    "multipart/form-data": files,
                    **_json(images | {"additionalProperties": False}),
                },
            },
            "responses": _answers(good, *_REFUSALS),
        }
    }


def _getting(summary: str, good: Json, *parameters: Json, guarded: bool = True) -> Json:
    refusals = ["401"] * guarded + ["404"] * bool(parameters)
    found = {"summary": summary, "responses": _answers(good, *refusals), **({} if guarded else {"security": []})}
    return {"get": {**found, "parameters": list(parameters)} if parameters else found}


_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _inferring(*parameters: Json) -> Json:
    return {
        "post": {
            "summary": "Run a network on tensors, or on the files of pictures as BYTES",
            "description": f"Tensors' bytes may follow the JSON, whose length `{HEADER_LENGTH}` then says.",
            "parameters": list(parameters),
            "requestBody": {"required": True, "content": {**_json(_ref("InferRequest")), **_BINARY}},
            "responses": _answers({**_json(_ref("InferAnswer")), **_BINARY}, *_REFUSALS),
        }
    }


def document(largest: int) -> Json:
    """The OpenAPI document, version 3.1.

    Args:
        largest: bytes of a body.
    """
    draw = _query(
        "draw", {"type": "boolean", "default": False}, "Answer with the picture, what is in it drawn on: JPEG."
    )
    top_k = _query("top_k", _POSITIVE, "Labels per picture, of a classifier: 5, or of a multi-label one all it finds.")
    score = _query(
        "score",
        {"type": "number", "minimum": LOWEST_SCORE, "maximum": 1, "default": 0.3},
        "Lowest score of the objects, of a detector.",
    )
    target = _query(
        "target",
        _list({"type": "string", "minLength": 1, "maxLength": LONGEST}, maxItems=20),
        "Class to explain, by name or index; repeat it for several. The best one.",
    )
    predicted = {**_json(_ref("Predictions")), "image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    model, states = "/v2/models/{model}", _object({"name": _TEXT, "version": _TEXT, "state": _TEXT})
    metadata = _object(
        {"name": _TEXT, "versions": _list(_TEXT), "platform": _TEXT, "inputs": _list(_object(_TENSOR)),
         "outputs": _list(_object(_TENSOR))}
    )  # fmt: skip
    ready = _object({"name": _TEXT, "ready": {"type": "boolean"}})
    versions: Json = {}
    for path, parameters in ((model, [_NAME]), (f"{model}/versions/{{version}}", [_NAME, _VERSION])):
        versions |= {
            path: _getting("The tensors of a network", _json(metadata), *parameters),
            f"{path}/ready": _getting("Whether a network can be asked", _json(ready), *parameters),
            f"{path}/infer": _inferring(*parameters),
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vankit",
            "version": version("vankit"),
            "description": "Pictures in; labels, boxes and masks out. Errors are JSON with the reason as `error`.",
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/models": _getting("The networks that are served", _json(_object({"models": _list(_ref("Model"))}))),
            "/predict/{model}": _asking("What is in pictures", [top_k, score, draw], predicted, largest),
            "/explain/{model}": _asking(
                "Where in pictures the evidence for a class is (Grad-CAM)",
                [target],
                _json(_ref("Explanations")),
                largest,
            ),
            "/metrics": _getting("Figures for Prometheus", {"text/plain": {"schema": _TEXT}}),
            "/v2": _getting(
                "The server, as the Open Inference Protocol has it",
                _json(_object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)})),
            ),
            "/v2/health/live": _getting(
                "Whether the service lives", _json(_object({"live": {"type": "boolean"}})), guarded=False
            ),
            "/v2/health/ready": _getting(
                "Whether the service can be asked", _json(_object({"ready": {"type": "boolean"}})), guarded=False
            ),
            **versions,
            "/v2/repository/index": {
                "post": {
                    "summary": "The networks and their state",
                    "responses": _answers(_json(_list(states)), "401", "403"),
                }
            },
            "/v2/repository/models/{model}/load": {
                "post": {
                    "summary": "Load a network again, whose folder or file was replaced",
                    "parameters": [_NAME],
                    "responses": _answers(_json(states), "400", "401", "403", "404", "429"),
                }
            },
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def page(found: Json) -> str:
    """The document as a page of HTML.

    Args:
        found: see `document`.
    """
    paths = "\n".join(
        _section(path, method, about) for path, methods in found["paths"].items() for method, about in methods.items()
    )
    info, refusals = found["info"], _table(list(_REFUSALS.items()))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])}: what it can be asked for</title>
<link rel="icon" type="image/svg+xml" href="./icon.svg"><link rel="stylesheet" href="./manual.css"></head>
<body>
<h1>What {escape(info["title"])} {escape(info["version"])} can be asked for</h1>
<p>{_marked(info["description"])} The same for programs: <a href="./openapi.json">openapi.json</a>; the page for
photographs: <a href="./">here</a>.</p>
{paths}
<section><h2>What is refused</h2>
{refusals}</section>
</body></html>
"""


def _section(path: str, method: str, about: Json) -> str:
    rows = [(each["name"], f"in the {each['in']}", each.get("description", "")) for each in about.get("parameters", ())]
    if body := about.get("requestBody"):
        rows.append(("body", ", ".join(body["content"]), body.get("description", "")))
    text = f"<p>{_marked(about['description'])}</p>" if "description" in about else ""
    return f"""<section><h2><code>{method.upper()} {escape(path)}</code></h2>
<p>{_marked(about["summary"])}.</p>{text}
{_table(rows)}</section>"""


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = (f"<tr>{''.join(f'<td>{_marked(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{''.join(cells)}</table>" if rows else ""


def _marked(text: str) -> str:
    """Escaped, with what is in backquotes as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
