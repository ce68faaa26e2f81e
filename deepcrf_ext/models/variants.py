"""Variants of a model: which of its potentials a prediction uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepcrf_ext.config import paper_relations


@dataclass(frozen=True)
class Variant:
    """Which potentials of a model a prediction uses: a row of the paper's ablation, or another.

    Without a unary every label costs the same. With `dense_crf`, a dense CRF over pixels follows
    (`deepcrf_ext.models.refine`).
    """

    unary: str | None
    relations: tuple[str, ...] = ()
    dense_crf: bool = False

    @property
    def potentials(self) -> tuple[str, ...]:
        """Names of all its potentials."""
        return self.relations if self.unary is None else (self.unary, *self.relations)


VARIANTS: dict[str, Variant] = {
    "unary-1scale": Variant("unary_1scale"),
    "unary-3scales": Variant("unary"),
    "pairwise-1": Variant(None, ("surrounding",)),
    "pairwise-2": Variant(None, ("above_below",)),
    "1unary+2pair": Variant("unary", ("surrounding", "above_below")),
    "full": Variant("unary", ("surrounding", "above_below"), dense_crf=True),
}
"""The variants of the paper's ablation by name, what `--row` and `--rows` take."""

UNARIES = ("unary", "unary_1scale")
"""Names of the potentials that are not relations; a CRF takes the first that there is."""


def whole_crf(potentials: Sequence[str]) -> Variant:
    """The unary of these potentials, if there is one, with all relations, without a dense CRF."""
    unaries = [name for name in UNARIES if name in potentials]
    unary = unaries[0] if unaries else None
    return Variant(unary, tuple(name for name in potentials if name not in UNARIES))


def variants_of(potentials: Sequence[str]) -> dict[str, Variant]:
    """The variants of these potentials by name: see `DeepCRF.variants`."""
    variants = {
        name: variant
        for name, variant in VARIANTS.items()
        if set(variant.potentials) <= set(potentials)
    }
    crf = whole_crf(potentials)
    for relation in crf.relations:
        if relation not in paper_relations():
            variants[f"pairwise-{relation}"] = Variant(None, (relation,))
    if crf.unary == "unary" and crf.relations and crf not in variants.values():
        variants[f"1unary+{len(crf.relations)}pair"] = crf
    return variants
