"""A model learns a task of GLUE, without a teacher."""

from __future__ import annotations

from homodistil_ds.config import RunConfig
from homodistil_ds.machine import Machine
from homodistil_ds.methods.learning import learn
from homodistil_ds.methods.task_setting import prepare_task


def run(config: RunConfig, machine: Machine, command: str) -> None:
    """Fine-tune --model on --task.name, score it on the development set, predict the test set."""
    learn(prepare_task(config, machine, command))
