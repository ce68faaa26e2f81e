"""`python -m deepcrf_ext`: which commands there are."""

from __future__ import annotations

COMMANDS = {
    "train": "trains a CRF whose potentials are networks",
    "evaluate": "measures a checkpoint on a split, before and after the CRF",
    "predict": "segments images",
    "refine": "sharpens masks of any model by a dense CRF",
    "data": "shows what training would see of a data set, and which files cannot be used",
    "tune_dense_crf": "searches the parameters of the dense CRF",
    "calibrate": "fits the weights of the relations to held-out labels",
    "explain": "draws what the relations have learnt, and why a pixel has its label",
    "reproduce": "makes the paper's tables, from training to report",
    "voc_submission": "makes the archive for VOC's server",
    "compare_objectives": "trains one model by several objectives",
    "merge_checkpoints": "joins potentials that were trained apart",
    "pydensecrf": "runs a script that imports pydensecrf",
    "env": "prints what was built and what is used",
}


def main() -> None:
    """Prints them."""
    print("usage: python -m deepcrf_ext.COMMAND ..., and --help for its options\n")
    for name, text in COMMANDS.items():
        print(f"  {name:<20}{text}")


if __name__ == "__main__":
    main()
