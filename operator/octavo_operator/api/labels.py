"""Label selectors, as Kubernetes has them."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from octavo_operator.api import pod_rules
from octavo_operator.api.base import ApiModel, ListType, Rule
from octavo_operator.api.types import LabelValue, QualifiedName, given


class LabelSelectorRequirement(ApiModel):
    """One demand on a label."""

    rules: ClassVar[tuple[Rule, ...]] = pod_rules.SELECTOR_REQUIREMENT

    key: QualifiedName = Field(description="Key of the label.", examples=["team"])
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="In, NotIn: its value is, or is not, among values. Exists, DoesNotExist: it is there, or is not."
    )
    values: Annotated[list[LabelValue], Field(max_length=16), ListType("atomic")] = Field(
        [], description="Values for In and NotIn; none for the others.", examples=["[search, ads]"]
    )


class LabelSelector(ApiModel):
    """Which objects are meant, by their labels; all demands must hold, and an empty one means every object."""

    rules: ClassVar[tuple[Rule, ...]] = pod_rules.SELECTOR

    match_labels: Annotated[dict[str, LabelValue], Field(max_length=16), BeforeValidator(given)] = Field(
        {}, description="Labels that the object must carry, with these values.", examples=["{team: search}"]
    )
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=16), ListType("atomic")] = Field(
        [], description="Further demands on its labels."
    )
