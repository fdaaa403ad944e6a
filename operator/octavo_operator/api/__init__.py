"""The API `octavo.dev/v1alpha1`: `LLMDeployment`, what refuses a bad one, and the CRD made from both.

Everything that judges a manifest without a cluster starts here and needs only pydantic and PyYAML.
"""

from octavo_operator.api.errors import FieldError, ManifestError
from octavo_operator.api.manifest import load_manifest, parse
from octavo_operator.api.resource import LLMDeployment, ObjectMeta
from octavo_operator.api.spec import LLMDeploymentSpec
from octavo_operator.api.status import Condition, LLMDeploymentStatus

__all__ = [
    "Condition",
    "FieldError",
    "LLMDeployment",
    "LLMDeploymentSpec",
    "LLMDeploymentStatus",
    "ManifestError",
    "ObjectMeta",
    "load_manifest",
    "parse",
]
