"""A trainer that has nothing but parameters, to save checkpoints as fairseq does."""

import os
from types import SimpleNamespace

import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from omegaconf import OmegaConf

import esrl_fairseq  # noqa: F401 (saving goes through it)


def state_after(update, size=2000):
    """What a checkpoint holds."""
    weights = torch.arange(size, dtype=torch.float32) + update
    return {
        "args": None,
        "cfg": {"model": {"_name": "transformer"}, "task": {"_name": "translation"}},
        "model": {"bias": weights[:3].clone(), "weight": weights},
        "optimizer_history": [
            {"num_updates": update, "optimizer_name": "Adam", "lr_scheduler_state": {}}
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }


class Trainer:
    """What fairseq's saving asks a trainer."""

    data_parallel_rank = 0
    should_save_checkpoint_on_current_rank = True
    always_call_state_dict_during_save_checkpoint = False
    checkpoint_suffix = ""
    task = SimpleNamespace()

    def __init__(self, update, size=2000):
        self.update, self.size = update, size

    def get_num_updates(self):
        return self.update

    def consolidate_optimizer(self):
        pass

    def save_checkpoint(self, filename, extra_state):
        state = state_after(self.update, self.size)
        state["extra_state"].update(extra_state)
        checkpoint_utils.torch_persistent_save(state, filename)
        return os.path.abspath(filename)


class Place:
    """A place in the middle of an epoch."""

    epoch = 1

    def end_of_epoch(self):
        return False

    def state_dict(self):
        return {"epoch": 1}


def save(folder, update, size=2000):
    """Save checkpoint_1_UPDATE.pt, checkpoint_best.pt and checkpoint_last.pt, and keep two."""
    cfg = OmegaConf.structured(CheckpointConfig)
    cfg.save_dir, cfg.save_interval_updates, cfg.keep_interval_updates = str(folder), 1, 2
    checkpoint_utils.save_checkpoint.best = update
    checkpoint_utils.save_checkpoint(cfg, Trainer(update, size), Place(), update)


def updates(path):
    """After which update a checkpoint was saved, by what it holds."""
    state = torch.load(path, weights_only=True)
    weights = state["model"]["weight"]
    (update,) = set((weights - torch.arange(len(weights))).tolist())
    assert update == state["optimizer_history"][-1]["num_updates"]
    return int(update)
