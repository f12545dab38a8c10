"""The other side of the training rows: sae-lens's own trainer at the same size, in an environment that has it.

    python experiments/benchmarks/sae_lens_side.py topk 2     # with sae-lens 6.54's python; prints CPU seconds per step

It trains on one random batch over and over, as ours does. Nothing of Wiretrace is imported.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

import torch

WIDTH, FEATURES, BATCH = 768, 16_384, 4_096


def main(architecture: str, steps: int) -> None:
    """Train, and print the cost of a step."""
    torch.set_num_threads(1)
    settings, saes = (importlib.import_module(f"sae_lens.{name}") for name in ("config", "saes"))
    trainer_class = importlib.import_module("sae_lens.training.sae_trainer").SAETrainer
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    shape = {"d_in": WIDTH, "d_sae": FEATURES, "device": "cpu"}
    if architecture == "topk":
        sae = saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(k=32, **shape))
    else:
        sae = saes.StandardTrainingSAE(saes.StandardTrainingSAEConfig(l1_coefficient=0.1, **shape))
    config = settings.SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=steps * BATCH,
        device="cpu", autocast=False, lr=3e-4, lr_end=3e-4, lr_scheduler_name="constant", lr_warm_up_steps=0,
        adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=BATCH,
        dead_feature_window=1000, feature_sampling_window=2000, n_batches_for_norm_estimate=1,
        logger=settings.LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
    )  # fmt: skip
    trainer = trainer_class(cfg=config, sae=sae, data_provider=iter([x] * (steps + 1)), evaluator=None)
    start = time.process_time()
    trainer.fit()
    sys.stdout.write(json.dumps({"steps": steps, "cpu_seconds_per_step": (time.process_time() - start) / steps}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
