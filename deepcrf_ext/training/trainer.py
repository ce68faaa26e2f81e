"""The training loop: steps, checkpoints, validation, and continuing exactly where it stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from deepcrf_ext.config import TrainConfig, to_dict
from deepcrf_ext.data import SegmentationDataset
from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.evaluation.evaluation import EvaluationStopped, before_and_after, evaluate
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.parallel.batch_norm import share_batches
from deepcrf_ext.parallel.device import autocast, choose_device
from deepcrf_ext.parallel.world import ALONE, GradientSum, World
from deepcrf_ext.records.checkpoint import load_checkpoint, save_checkpoint
from deepcrf_ext.records.folder_lock import locked
from deepcrf_ext.records.run_folder import MetricsLog, record_start, write_config
from deepcrf_ext.training.class_balance import median_frequency_weights
from deepcrf_ext.training.data_checks import check_data
from deepcrf_ext.training.graph_memory import check_crop_memory, validation_views
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.loader import (
    Transform,
    batches_per_epoch,
    epoch_batches,
    loaders_needed,
)
from deepcrf_ext.training.objectives import Loss, make_losses, part_counts, part_weights
from deepcrf_ext.training.optimiser import (
    learning_rate_factor,
    make_optimiser,
    set_learning_rate,
)
from deepcrf_ext.training.plain_settings import plain_settings
from deepcrf_ext.training.stages import plan_stages
from deepcrf_ext.training.starting_weights import StartingWeights, take_weights
from deepcrf_ext.training.step_log import StepLog, epoch_summary
from deepcrf_ext.training.weight_average import WeightAverage


@dataclass
class Progress:
    """How far a run is: `batch` batches of `epoch` and `step` steps in all are done.

    stage: the position of the current stage among the run's.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -1.0
    stage: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a model by the objective of its settings, stage by stage.

    Args:
        config: the run.
        train_set, val_set: images.
        model: what is trained; None makes the one of the settings. Its own settings replace theirs.
        transform: makes a sample an image, float32 [3, h, w] RGB 0..255, and labels, int64 [h, w],
            with the random numbers of a generator; None is the `TrainTransform` of the settings.
        checkpoint: of this run, to go on from.
        world: the processes that train together, each its part of every batch.

    Raises InputError when the settings do not fit the model, the data or the machine.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_set: SegmentationDataset,
        val_set: SegmentationDataset,
        model: DeepCRF | None = None,
        *,
        transform: Transform | None = None,
        checkpoint: str | Path | None = None,
        world: World = ALONE,
    ) -> None:
        check_data(train_set, val_set, model)
        if model is not None:
            config = replace(config, model=model.config)
        self.config, self.world = plain_settings(config, train_set), world
        batch_size = min(config.batch_size, len(train_set))
        self.fewest_images = batch_size // world.size  # that a process has of a batch
        if self.fewest_images == 0:
            raise InputError(
                f"batch_size: {config.batch_size}, of {len(train_set)} images, must be at least 1 "
                f"for each of the {world.size} processes"
            )
        self.train_set, self.val_set = train_set, val_set
        self.device = choose_device(config.device)
        torch.manual_seed(config.seed)
        self.model = DeepCRF(config.model, train_set.num_classes) if model is None else model
        self.model.label_smoothing = config.label_smoothing
        self.model.classes = list(train_set.classes)
        self.model.palette = train_set.palette.tolist()
        self.transform = transform
        start = StartingWeights()
        if checkpoint is None:
            start = take_weights(self.model, config, train_set.classes)
            if start.relations_started:
                self.config = replace(self.config, warm_start=0.0)  # would start them once more
        self.initialised, self.transfer, self.loaded = start.taken, start.transfer, start.loaded
        if isinstance(self.config.class_balance, tuple):
            self.model.class_weights = torch.tensor(self.config.class_balance, device="cpu")
        check_crop_memory(self.config, self.model, len(train_set), world.size, self.device)
        self.views, notice = validation_views(self.config, self.model, val_set, self.device)
        if notice and world.is_main:
            print(notice, file=sys.stderr)
        self.model.to(self.device)
        alone = share_batches(self.model, world)
        if alone and world.size > 1 and world.is_main:
            text = f"batch normalisation of {', '.join(alone)}: by the images of each process alone"
            print(text, file=sys.stderr)
        self.average = WeightAverage(self.model, config.ema)
        self.per_epoch = batches_per_epoch(len(train_set), config.batch_size)
        self.optimiser = make_optimiser(self.model, config.optim, self.initialised)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "float16")
        self.stages = plan_stages(self.config, self.model)
        self.progress = Progress()
        self.folder = Path()
        self.last_saved = time.monotonic()
        if checkpoint is not None:
            self.restore(Path(checkpoint))

    def restore(self, path: Path) -> None:
        """Goes to where a checkpoint of this run was written. Raises InputError if it is not."""
        state = load_checkpoint(path)
        if list(state["classes"]) != list(self.train_set.classes):
            raise InputError(
                f"{path}: was trained for the classes {', '.join(state['classes'])}; the data have "
                f"{', '.join(self.train_set.classes)}"
            )
        self.average.restore(state, path)
        try:
            self.initialised = set(state["initialised"])
            self.optimiser = make_optimiser(self.model, self.config.optim, self.initialised)
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"] or self.scaler.state_dict())
            self.progress = Progress(**state["progress"])
            class_weights = state["class_weights"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is of a version whose runs cannot be continued") from error
        if self.progress.epoch > self.config.epochs:
            raise InputError(
                f"epochs: got {self.config.epochs}, must be at least the {self.progress.epoch} of "
                f"{path} that are done"
            )
        if class_weights is not None:
            self.model.class_weights = torch.tensor(class_weights, device=self.device)

    def fit(self, folder: str | Path, stop: StopRequest | None = None) -> bool:
        """Trains to the end; False when `stop` ended it early, with a checkpoint to go on from.

        folder: where `records.run_folder` writes, made where it is missing. stop: None asks never.

        Raises TrainingError when a loss is not finite, LostProcessError when another process of
        the run ends, InputError when another writes to the folder, OSError when a checkpoint cannot
        be written; the newest checkpoint stays whole in any case.
        """
        progress, config = self.progress, self.config
        self.folder = folder = Path(folder)
        stop = stop or StopRequest()
        with ExitStack() as held:
            if self.world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
                write_config(folder, config)
                facts = {"device": str(self.device), "processes": self.world.size}
                record_start(folder, progress.step, **facts)
            if progress.step == 0:
                self.save("last.pt")
            if config.class_balance == "median_frequency" and self.model.class_weights is None:
                weights = median_frequency_weights(self.train_set, self.world)
                self.model.class_weights = weights.to(self.device)
                self.save("last.pt")
            log = MetricsLog(folder, progress.step) if self.world.is_main else None
            if log is not None:
                held.callback(log.close)
            with loaders_needed():
                return self._finish_epochs(log, stop)

    def save(self, name: str) -> None:
        """Writes a checkpoint that training can go on from into the run folder, and the weights
        alone of the best one, or of the newest while there is none.

        Called in every process; one of them writes.
        """
        self.last_saved = time.monotonic()
        if not self.world.is_main:
            return
        weights = self.model.class_weights
        save_checkpoint(
            self.folder / name,
            {
                "config": to_dict(self.config),
                "classes": list(self.train_set.classes),
                "palette": self.train_set.palette.tolist(),
                "epoch": self.progress.epoch,
                "step": self.progress.step,
                **self.average.state(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": asdict(self.progress),
                "initialised": sorted(self.initialised),
                "class_weights": None if weights is None else weights.tolist(),
            },
        )
        if name == "best.pt" or not (self.folder / "best.pt").exists():
            with self.average.applied():
                self.model.save_pretrained(self.folder / "weights")

    def _finish_epochs(self, log: MetricsLog | None, stop: StopRequest) -> bool:
        """The epochs that are left; False when asked to stop, with a checkpoint to go on from."""
        progress, config = self.progress, self.config
        left = (config.epochs - progress.epoch) * self.per_epoch - progress.batch
        total = progress.step + max(left, 0)  # also where a resumed run has other images
        images = min(config.batch_size, len(self.train_set))
        with StepLog(total, progress.step, images, quiet=not self.world.is_main) as bar:
            while progress.epoch < config.epochs:
                if not self._finish_epoch(bar, log, stop):
                    self.save("last.pt")
                    return False
        return True

    def _finish_epoch(self, bar: StepLog, log: MetricsLog | None, stop: StopRequest) -> bool:
        """The rest of the epoch, its validation and checkpoint; False when asked to stop."""
        progress, config = self.progress, self.config
        self._enter_stage()
        self.model.train()
        bar.describe(f"epoch {progress.epoch + 1}/{config.epochs}")
        batches = epoch_batches(
            self.train_set, config, progress.epoch, progress.batch, self.world, self.transform
        )
        with closing(batches):
            for images, labels in batches:
                losses = self.step(images, labels)
                lr = self.optimiser.param_groups[0]["lr"]
                if log is not None:
                    log.write("train", progress.step, {"loss": losses, "lr": lr})
                bar.step(losses, lr)
                overdue = time.monotonic() - self.last_saved > 60 * config.save_minutes
                stopping, saving = self.world.any(stop.signal is not None, overdue)
                if stopping:
                    return False
                if saving:
                    self.save("last.pt")
        due = (progress.epoch + 1) % config.validate_every == 0
        improved = False
        if due or progress.epoch + 1 == config.epochs:
            try:
                improved = self._measure_epoch(bar, log, stop)
            except EvaluationStopped:
                return False
        progress.epoch, progress.batch, progress.loss_sums = progress.epoch + 1, 0, {}
        if improved:
            self.save("best.pt")
        self.save("last.pt")
        return True

    def _measure_epoch(self, bar: StepLog, log: MetricsLog | None, stop: StopRequest) -> bool:
        """Measures and logs the epoch that ends; whether the whole model is better than ever."""
        progress = self.progress
        trained = self.stages[progress.stage].potentials
        with bar.aside("validating"):
            scores = self.validate(trained, stop)
        if log is not None:
            means = {name: value / self.per_epoch for name, value in progress.loss_sums.items()}
            by_score = {
                key: {name: score[key] for name, score in scores.items()}
                for key in next(iter(scores.values()))
            }
            values = {"epoch": progress.epoch + 1, "train_loss": means, **by_score}
            log.write("val", progress.step, values)
            bar.write(epoch_summary(progress.epoch + 1, means, by_score["mean_iou"]))
        final = list(scores.values())[-1]["mean_iou"]
        if trained != self.model.potential_names or not final > progress.best:
            return False
        progress.best = final
        return True

    def validate(self, trained: Sequence[str], stop: StopRequest) -> dict[str, dict[str, float]]:
        """`Evaluation.summary` of the validation images, for the unary and the whole CRF.

        It is of the averaged weights, if there are any. Variants with a potential that is not among
        `trained` are left out. Leaves the model in eval mode. Raises EvaluationStopped.
        """
        variants = {
            name: variant
            for name, variant in before_and_after(self.model).items()
            if set(variant.potentials) <= set(trained)
        }
        with self.average.applied():
            return evaluate(
                self.model.eval(),
                self.val_set,
                variants,
                self.config.amp,
                world=self.world,
                views=self.views,
                boundaries=False,
                stop=lambda: stop.signal is not None,
            ).summary()

    def _enter_stage(self) -> None:
        """Goes on to the stage of the current epoch, never back when a run is made longer.

        Relations that a stage is the first to train start from the unary.
        """
        while self.progress.stage + 1 < len(self.stages):
            now, later = self.stages[self.progress.stage : self.progress.stage + 2]
            if self.progress.epoch < later.first_epoch:
                break
            if now.potentials != later.potentials:
                self.model.start_relations_from_unary()
                self.average.restart()
            self.progress.stage += 1

    def _part_weights(self, objective: Sequence[Loss], parts: Sequence[Tensor]) -> Tensor:
        """`part_weights` of this process's parts of a step, given by their labels."""
        if len(parts) == self.world.size == 1:
            return torch.ones(len(objective), 1, device=self.device)
        counts = part_counts(self.model, objective, parts)
        return part_weights(counts, self.world.sum(counts.sum(1)))

    def step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on a batch; returns the losses of the whole batch by name.

        The batch is computed in parts (`TrainConfig.accumulate`), and each loss of the stage's
        objective runs its backward pass alone, down to what potentials share; that runs its own
        once, from the sum of the gradients. Raises TrainingError when a loss is not finite; the
        weights are then as before.

        Args:
            images: float32 RGB [B, 3, H, W], 0..255; of several processes, this one's part.
            labels: int64 [B, H, W], 255 = ignore.
        """
        progress, config = self.progress, self.config
        # Dropout and the like draw the same after a resume.
        torch.manual_seed(crc32(f"{config.seed} {progress.step} {self.world.rank}".encode()))
        images, labels = images.to(self.device), labels.to(self.device)
        # As many in every process, as each exchanges the statistics of batch normalisation.
        count = min(config.accumulate, self.fewest_images)
        parts = list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))
        stage = self.stages[progress.stage]
        objective = make_losses(stage.objective, self.model, stage.potentials, config.unary_loss)
        weights = self._part_weights(objective, [part for _, part in parts])
        self.optimiser.zero_grad()
        results = torch.zeros(len(objective), device=self.device)
        gradients = GradientSum(self.world)
        for part, (part_images, part_labels) in enumerate(parts):
            with autocast(self.device, config.amp):
                inputs = self.model.inputs(part_images, stage.potentials)
            leaves = [scale.detach().requires_grad_(scale.requires_grad) for scale in inputs]
            for index, loss in enumerate(objective):
                with autocast(self.device, config.amp):
                    mean = loss.mean(self.model, leaves, part_labels)
                weighted = weights[index, part] * mean
                self.scaler.scale(weighted).backward()
                results[index] += weighted.detach()
                if part + 1 == len(parts):
                    gradients.start(self.model.parameters_of(loss.potentials))
            torch.autograd.backward(
                [scale for scale in inputs if scale.requires_grad],
                [leaf.grad for leaf in leaves if leaf.requires_grad],
            )
        gradients.finish(self.model.parameters())
        values = self.world.sum(results).tolist()
        losses = {loss.name: value for loss, value in zip(objective, values, strict=True)}
        for name, value in losses.items():
            if not abs(value) < float("inf"):
                raise TrainingError(
                    f"the loss of {name} is {value} at step {progress.step + 1} (epoch "
                    f"{progress.epoch + 1}); a lower optim.lr may help; the newest checkpoint is "
                    f"{self.folder / 'last.pt'}"
                )
        done = (progress.epoch * self.per_epoch + progress.batch) / self.per_epoch
        factor = learning_rate_factor(config.optim, done, config.epochs)
        set_learning_rate(self.optimiser, stage.lr_factor * factor)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.average.update()
        progress.step += 1
        progress.batch += 1
        for name, value in losses.items():
            progress.loss_sums[name] = progress.loss_sums.get(name, 0.0) + value
        return losses
