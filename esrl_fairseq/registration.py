"""All of this package that fairseq is to know of: importing it registers it, once."""

from esrl_fairseq import compat

compat.apply()

import esrl_fairseq.reward_models.criterion  # noqa: E402,F401
import esrl_fairseq.reward_models.task  # noqa: E402,F401
from esrl_fairseq import (  # noqa: E402,F401  (registration)
    criterion,
    huggingface,
    language_task,
    optimizer,
    task,
)
from esrl_fairseq.checkpoints.reading import check_file, not_loaded, own_last  # noqa: E402
from esrl_fairseq.checkpoints.writing import (  # noqa: E402
    begin_saving,
    check_folder,
    copy_checkpoint,
    save_checkpoint,
)
from esrl_fairseq.checks.hints import explain  # noqa: E402
from esrl_fairseq.data import place, stored  # noqa: E402
from esrl_fairseq.processes import launch, running, spawning  # noqa: E402
from esrl_fairseq.signals import STOP, obey_parent_alone  # noqa: E402
from esrl_fairseq.start.taking import architecture_of_start  # noqa: E402


def begin_run(trainer: object) -> None:
    """Before a training's start is loaded, whatever its task."""
    STOP.listen()
    compat.after_updates(STOP.at_update)
    compat.at_end_of_training(STOP.forget)
    begin_saving(trainer)


compat.keep_checkpoints_whole(
    save_checkpoint, copy_checkpoint, check_file, not_loaded, own_last, check_folder
)
compat.tell_tasks_of_the_start(begin_run, STOP.begin)
compat.end_at_updates(STOP.flag, STOP.tell, STOP.validated, obey_parent_alone)
compat.extend_parsing(architecture_of_start, explain)
compat.look_at_data_first(stored.check_stored, stored.dictionary_error)
compat.keep_place_in_batches(place.state_at, place.resumed_state, place.dealt_to)
compat.launch_by(launch.prepare, running.join, running.Guarded, spawning.start_ranks)
compat.tell_of_progress(running.step, running.part, running.saving, running.watched)
compat.keep_old_names()
