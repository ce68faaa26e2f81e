"""Variants of a model: which of its potentials a prediction uses."""

from __future__ import annotations

from dataclasses import dataclass


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
