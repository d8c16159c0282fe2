"""The service answers what /openapi.json says: schemathesis asks for all that stands there, rightly and wrongly."""

import copy
from typing import Any

import numpy as np
import pytest
from clients import Client, encoded
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis")
openapi = pytest.importorskip("vankit.serving.openapi")

LARGEST = 20_000_000  # bytes of a body: what `service` takes
KNOWN = {"model": ["animals", "no-such-model"], "version": ["1", "2"]}


def with_names(document: Any) -> Any:
    """The document with names that there are: of made-up ones every request would be refused with 404."""
    found = copy.deepcopy(document)
    for methods in found["paths"].values():
        for about in methods.values():
            for parameter in about.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] = {"type": "string", "enum": KNOWN[parameter["name"]]}
    return found


pictures = st.sampled_from([encoded(np.zeros((40, 50, 3), np.uint8)), encoded(np.zeros((9, 9), np.uint8), "JPEG")])
for kind in ("application/octet-stream", "image/*"):
    schemathesis.openapi.media_type(kind, st.one_of(pictures, st.binary(max_size=100)))
schema = schemathesis.openapi.from_dict(with_names(openapi.document(LARGEST)))


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=50, suppress_health_check=list(HealthCheck), deadline=None)
def test_answers_are_as_documented(case: Any, service: Client) -> None:
    # that a request is of the schema does not make its bytes a picture, nor its tensors those of this network
    left_out = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    case.call_and_validate(base_url=f"http://127.0.0.1:{service.port}", excluded_checks=left_out)


def test_the_document_is_that_of_the_service(service: Client) -> None:
    assert service.get("/openapi.json").json == openapi.document(LARGEST)
