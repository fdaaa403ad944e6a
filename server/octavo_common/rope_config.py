"""Rotary position embedding as a `config.json` describes it, in both dialects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from octavo_common.json_fields import FieldReader, ModelConfigError

RopeKind = Literal["default", "linear", "llama3", "yarn"]
ROPE_KINDS: Final[tuple[RopeKind, ...]] = get_args(RopeKind)


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary position embedding: base and, where present, the scaling of its frequencies.

    `kind` is "default", "linear", "llama3" or "yarn"; the other fields belong to the kinds that name them.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


def parse_rope(config: Mapping[str, Any], max_position_embeddings: int) -> RopeScaling:
    """The rotary embedding of a `config.json`.

    Published models have `rope_theta` beside a `rope_scaling` that is null or an object with `type` or `rope_type`;
    transformers 5 has all of it in `rope_parameters`. Where both are there, `rope_scaling` wins, as in transformers.

    Raises:
        ModelConfigError: a kind that is not supported, or a field of it missing or of the wrong type.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise ModelConfigError(f"{name} is {given!r}; it must be an object or null")
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ModelConfigError(f"{name} differs by layer type, which is not supported; it must be one flat object")
    kind = _kind(name, given)
    outer = FieldReader(config)
    fields = FieldReader(given, prefix=f"{name}.")
    _refuse_partial_rotation(outer, fields)
    theta = fields.optional_number("rope_theta") or outer.optional_number("rope_theta") or 10_000.0
    if theta <= 0:
        raise ModelConfigError(f"rope_theta is {theta:g}; it must be a number above 0")
    if kind == "default":
        return RopeScaling(theta=theta)
    if kind == "linear":
        return RopeScaling(theta=theta, kind=kind, factor=_factor(fields))
    original = outer.optional_count("original_max_position_embeddings")
    original = original or fields.count("original_max_position_embeddings", default=max_position_embeddings)
    if kind == "llama3":
        return _llama3(fields, theta, original)
    return _yarn(fields, theta, original, max_position_embeddings)


def _kind(name: str, given: Mapping[str, Any]) -> RopeKind:
    key = "rope_type" if "rope_type" in given else "type"
    value = given.get(key, "default")
    for kind in ROPE_KINDS:
        if value == kind:
            return kind
    raise ModelConfigError(f"{name}.{key} is {value!r}, which is not supported; supported are {', '.join(ROPE_KINDS)}")


def _refuse_partial_rotation(outer: FieldReader, inner: FieldReader) -> None:
    for fields in (outer, inner):
        share = fields.number("partial_rotary_factor", default=1.0)
        if share != 1.0:
            raise ModelConfigError(f"partial_rotary_factor is {share:g}; only 1 is supported")


def _factor(fields: FieldReader) -> float:
    return fields.number("factor", at_least=1.0)


def _llama3(fields: FieldReader, theta: float, original: int) -> RopeScaling:
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if not 0 < low < high:
        raise ModelConfigError(
            f"low_freq_factor is {low:g}, high_freq_factor {high:g}; it must be 0 < low_freq_factor < high_freq_factor"
        )
    return RopeScaling(
        theta=theta,
        kind="llama3",
        factor=_factor(fields),
        original_max_position_embeddings=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(fields: FieldReader, theta: float, original: int, max_position_embeddings: int) -> RopeScaling:
    return RopeScaling(
        theta=theta,
        kind="yarn",
        factor=_factor(fields) if fields.given("factor") else max_position_embeddings / original,
        original_max_position_embeddings=original,
        # 0 means "the usual" to transformers, like null
        beta_fast=fields.number("beta_fast", default=32.0) or 32.0,
        beta_slow=fields.number("beta_slow", default=1.0) or 1.0,
        attention_factor=fields.optional_number("attention_factor", at_least=0.0),
        mscale=fields.optional_number("mscale"),
        mscale_all_dim=fields.optional_number("mscale_all_dim"),
        truncate=fields.flag("truncate", default=True),
    )
