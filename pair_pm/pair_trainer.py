"""axolotl's trainer with the loss, the micro-batches and the live numbers of a pairwise judge."""

import contextlib
import datetime
import logging
import math
import shutil
from pathlib import Path

import torch
from axolotl.core.trainers.base import AxolotlTrainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from pair_pm.errors import CheckpointError, ConfigError
from pair_pm.live_numbers import compute_eval_metrics, keep_whole_pairs, pairs_of
from pair_pm.pair_batches import PairCollator, UnitMultipackSampler, UnitSampler, pair_up
from pair_pm.pair_loss import IGNORED, LabelOnlyHead, PairLoss, Targets, compute_pair_loss, find_label_positions
from pair_pm.recipe import CARD_NAME, describe_run, write_recipe
from pair_pm.tokens import PromptEncoder
from pair_pm.training_report import REPORT_NAME, draw_report, make_table

# A child of axolotl's logger, so that it goes where the rest of the run's log goes.
logger = logging.getLogger("axolotl.pair_pm")

_PADDING = 64  # lengths of held-out batches are multiples of it


class PairTrainer(AxolotlTrainer):
    """Trains on `pair_pm.pair_rows` data, and evaluates on `pair_pm.both_orders` data.

    The keys that it looks at in the config are those of `pair_pm.training.PairPMArgs`.
    """

    def __init__(self, *args, data_collator=None, eval_data_collator=None, eval_dataset=None, **kwargs):
        # Held-out rows come sorted by length: padded to sequence_len, as training rows may be, they would be several
        # times the work.
        eval_data_collator.pad_to_multiple_of = min(eval_data_collator.pad_to_multiple_of or _PADDING, _PADDING)
        super().__init__(
            *args,
            data_collator=PairCollator(data_collator),
            eval_data_collator=PairCollator(eval_data_collator),
            eval_dataset=None if eval_dataset is None else keep_whole_pairs(eval_dataset),
            compute_metrics=compute_eval_metrics,
            **kwargs,
        )
        # As axolotl has it for nearly every model: a loss is averaged over its own micro-batch.
        self.model_accepts_loss_kwargs = False
        label_ids = PromptEncoder(self.processing_class).labels.label_ids
        self._label_ids = torch.tensor(label_ids, device=self.args.device)
        self._head = LabelOnlyHead(self.model)
        if not self._head.is_supported:
            logger.warning(
                "label_only_logits: %s has no output head to be found, so the logits of all positions are computed",
                type(self.model).__name__,
            )
        self._window = torch.zeros(4, device=self.args.device)
        self._tokens = 0
        self._train_sampler = None

    # ---- the loss ---------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the pair loss of a micro-batch, and its `PairLoss` where outputs are asked for.

        It is averaged as the stock loss is, over the rows of the micro-batch. Smoothing and symmetry belong to
        training: held-out rows get the plain cross-entropy, whichever rows share their batch.
        """
        inputs = dict(inputs)
        targets = inputs.pop("targets").to(self._label_ids.device)
        positions, is_a = find_label_positions(inputs["labels"]), self._find_a(inputs)
        if len(positions) != len(targets.prob_a):
            raise ConfigError(
                f"training rows: {len(positions)} tokens bear loss in a batch of {len(targets.prob_a)} rows; one a "
                "row, the label, is required"
            )
        found = []

        def loss_of_outputs(outputs, labels, num_items_in_batch=None):
            logits = self._pick_logits(outputs["logits"], positions)
            smoothing = self.axolotl_cfg.label_smoothing or 0.0 if model.training else 0.0
            found.append(compute_pair_loss(logits, self._label_ids, targets, smoothing))
            return self._reduce(found[0], model.training) + self._weigh_experts(outputs)

        # Set for this call alone: with a loss function of its own the trainer would not average over accumulation.
        self.compute_loss_func = loss_of_outputs
        try:
            with self._head.at(positions) if self._computes_labels_only() else contextlib.nullcontext():
                loss = super().compute_loss(model, inputs)
        finally:
            self.compute_loss_func = None
        if model.training:
            self._tokens += inputs["input_ids"].numel()
            self._note(found[0], targets, is_a)
        return (loss, found[0]) if return_outputs else loss

    def _computes_labels_only(self) -> bool:
        return self.axolotl_cfg.label_only_logits is not False and self._head.is_supported

    def _pick_logits(self, logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the logits that predict the labels, shape (rows, vocabulary)."""
        if self._computes_labels_only():
            if logits.shape[:2] == (1, len(positions)):
                return logits[0]
            self._head.is_supported = False
            logger.warning(
                "label_only_logits: %s computes logits of shape %s all the same; all positions are computed from here "
                "on, which takes more memory",
                type(self.model).__name__,
                tuple(logits.shape),
            )
        return logits.flatten(0, 1)[positions]

    def _reduce(self, loss: PairLoss, is_training: bool) -> torch.Tensor:
        weight = self.axolotl_cfg.symmetry_weight or 0.0
        if not (is_training and weight and loss.pairs):
            return loss.rows.mean()
        return loss.rows.mean() + weight * loss.symmetry / loss.pairs

    def _weigh_experts(self, outputs) -> torch.Tensor | float:
        """Return what the stock loss adds for a mixture of experts that asks for balance among them."""
        balance = outputs.get("aux_loss")
        return 0.0 if balance is None else self.model.config.get_text_config().router_aux_loss_coef * balance

    # ---- micro-batches ----------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "prob_a", "pair"]))

    def _get_train_sampler(self, train_dataset=None):
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.sample_packing or not self.axolotl_cfg.symmetry_weight:
            return super()._get_train_sampler(train_dataset)
        self._train_sampler = UnitSampler(pair_up(pairs_of(train_dataset)), self._shuffling_seed())
        return self._train_sampler

    def _create_multipack_sampler(self, base_sampler, dataset):
        stock = super()._create_multipack_sampler(base_sampler, dataset)
        is_symmetric = bool(self.axolotl_cfg.symmetry_weight)
        units = pair_up(pairs_of(dataset)) if is_symmetric else [(row,) for row in range(len(dataset))]
        names = ("packing_efficiency_estimate", "batch_max_len", "batch_size", "group_size", "bin_size", "sequential")
        names += ("drop_last", "num_processes", "mp_start_method")
        options = {name: getattr(stock, name) for name in names}
        self._train_sampler = UnitMultipackSampler(units, stock.lengths, self._shuffling_seed(), **options)
        return self._train_sampler

    def _shuffling_seed(self) -> int | None:
        return None if self.args.curriculum_sampling else self.args.seed

    def _run_epoch(self, *, epoch, **kwargs):
        # In a resumed epoch accelerate does not tell every sampler, and rows would come twice or never.
        if self._train_sampler is not None:
            self._train_sampler.set_epoch(epoch)
        return super()._run_epoch(epoch=epoch, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        """Return the loader of held-out rows: all of them, and the same number of batches on each rank."""
        # For packed training axolotl turns the one off and the other on, and rows of the last batches would be lost.
        self.accelerator.even_batches = True
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    # ---- live numbers -----------------------------------------------------------------------------------------------

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss of a batch, its rows' label log-probabilities, and their pair, label and target."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, found = self.compute_loss(model, inputs, return_outputs=True)
        targets = inputs["targets"].to(self._label_ids.device)
        return loss.detach(), found.logprobs, (targets.pair, self._find_a(inputs), targets.prob_a)

    def _find_a(self, inputs) -> torch.Tensor:
        """Return which rows are labelled "A", shape (rows,)."""
        return inputs["labels"][inputs["labels"] != IGNORED] == self._label_ids[0]

    def _note(self, loss: PairLoss, targets: Targets, is_a: torch.Tensor) -> None:
        """Add a micro-batch to the logging window: rows, label loss, rows with a winner, right answers."""
        log_odds = loss.logprobs[:, 0] - loss.logprobs[:, 1]
        label_loss = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, targets.prob_a, reduction="sum")
        decided = targets.prob_a != 0.5
        right = (torch.where(is_a, log_odds, -log_odds).sign() + 1) / 2
        rows = torch.tensor(float(len(log_odds)), device=log_odds.device)
        self._window += torch.stack([rows, label_loss, decided.sum(), right[decided].sum()])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and with the training loss the label loss and accuracy of all ranks' rows since the last time."""
        if "loss" in logs:
            rows, label_loss, decided, right = self.accelerator.reduce(self._window, "sum").tolist()
            logs["label_loss"] = label_loss / rows if rows else math.nan
            if decided:
                logs["label_accuracy"] = right / decided
            self._window.zero_()
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        """Train, evaluate the model that comes out where that was not the last thing done, and report."""
        output = super().train(*args, **kwargs)
        evaluated = [entry["step"] for entry in self.state.log_history if "eval_loss" in entry]
        is_last_evaluated = evaluated[-1:] == [self.state.global_step] and not self.args.load_best_model_at_end
        if self.eval_dataset is not None and not is_last_evaluated:
            self.evaluate()
        self.save_state()
        tokens = self.accelerator.reduce(torch.tensor(self._tokens, device=self.args.device), "sum").item()
        if self.is_world_process_zero():
            self._report(output.metrics["train_runtime"], tokens)
        return output

    def _report(self, seconds: float, tokens: int) -> None:
        from rich.console import Console

        run = {
            "training rows": f"{len(self.train_dataset):,}",
            "steps": f"{self.state.global_step:,}",
            "time of this process": f"{datetime.timedelta(seconds=round(seconds))}",
            "tokens a second in it": f"{tokens / seconds:,.0f}, padding included",
        }
        draw_report(self.state.log_history, Path(self.args.output_dir) / REPORT_NAME)
        Console(width=120).print(make_table(self.state.log_history, run))

    # ---- saving -----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial, **kwargs):
        run_folder = Path(self._get_output_dir(trial=trial))
        folder = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.is_world_process_zero():
            (folder / CARD_NAME).unlink(missing_ok=True)  # where an earlier run left one
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial, **kwargs)
            self.accelerator.wait_for_everyone()  # each rank writes a part
            self._write_card(folder)  # last: a checkpoint that has it is whole
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"{folder}: the checkpoint could not be written: {error}; room and the right to write are required; "
                "earlier checkpoints are whole, and --auto-resume-from-checkpoints true resumes from the last of them"
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            # Earlier ones go once this one is whole, not before.
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(run_folder), limit, best_model_checkpoint=best, use_mtime=True)

    def _push_from_checkpoint(self, checkpoint_folder):
        self._write_card(Path(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def push_to_hub(self, *args, **kwargs):
        """Publish the model, its card with it."""
        self._write_card(Path(self.args.output_dir))
        return super().push_to_hub(*args, **kwargs)

    def _write_card(self, folder: Path) -> None:
        if self.is_world_process_zero():
            encoder = PromptEncoder(self.processing_class)
            write_recipe(folder, encoder, describe_run(self.axolotl_cfg, encoder))
