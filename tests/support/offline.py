"""Commands that would look a model up where it is: in a test nothing is asked."""

import pytest

from octavo_common.json_fields import ModelConfigError


def ask_nobody(patch: pytest.MonkeyPatch) -> None:
    """`octavo plan` finds every model that is elsewhere unreadable, at once."""

    def unreadable(_: object) -> None:
        raise ModelConfigError("tests ask nobody")

    patch.setattr("octavo_cli.memory_plan.config_of", unreadable)
