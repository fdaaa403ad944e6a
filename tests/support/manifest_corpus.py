"""Good and bad LLMDeployments, judged alike by pydantic, a real API server and the commands: tests/operator/corpus/."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from octavo_operator.api.yaml_loader import load_documents

SOURCE = "model: {source: {builtin: {name: demo}}}"
CORPUS = Path(__file__).resolve().parents[1] / "operator" / "corpus"


@dataclass(frozen=True)
class Case:
    """One manifest, its spec as text; `path` is the offending field, empty where the manifest is good."""

    title: str
    spec: str
    path: str = ""
    name: str = "demo"

    @property
    def manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": "octavo.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": self.name},
            "spec": load_documents(self.spec)[0],  # as kubectl turns YAML into JSON
        }


def _cases(file: str) -> list[Case]:
    return [Case(**case) for case in yaml.safe_load((CORPUS / file).read_text())]


GOOD = _cases("good.yaml")
BAD = _cases("bad.yaml")
