"""What is wrong with a manifest, and where.

ManifestError(ValueError)
    carries one or more `FieldError`s; its text is one line for each: `spec.model.source: exactly one of …`
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One finding. `path` is as the API server writes it: `spec.server.env[0].name`; empty for the document itself."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ManifestError(ValueError):
    """The manifest is not a valid LLMDeployment; nothing of it was used."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))
