"""What a run survives: kill -9, a full disk, an output folder that it cannot write."""

import resource
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from axolotl.utils.dict import DictDefault
from conftest import ROOT
from safetensors.torch import load_file
from workshop import ENVIRONMENT, PACKED, Workshop, launch_line, score

from pair_pm.errors import CheckpointError
from pair_pm.resuming import check_output_dir, resume_from_whole_checkpoint

LONG = {"max_steps": 60, "save_steps": 15, "save_total_limit": 2, "save_only_model": False}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, axolotl_runs) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"), axolotl_runs)


class LaunchedRun:
    """A run under torchrun that can be looked at while it trains."""

    def __init__(self, config: Path, ranks: int, **options: str):
        command = launch_line(config, "--standalone", "--nproc_per_node", str(ranks))
        command += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        self._log = config.with_suffix(".launched.log").open("w+")
        self.process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=self._log, stderr=subprocess.STDOUT)

    def is_alive(self) -> bool:
        """Return whether torchrun runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End all of it at once, as a power cut would."""
        for process in [*psutil.Process(self.process.pid).children(), self.process]:
            process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Return its exit code."""
        return self.process.wait(timeout=300)

    def output(self) -> str:
        """Return all that it said."""
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")


def wait_for(path: Path, run) -> None:
    """Return when the file is there."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert run.is_alive(), run.output()[-5000:]
        assert time.monotonic() < deadline, run.output()[-5000:]
        time.sleep(0.002)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("ranks", "keys"), [(1, PACKED), (2, {"symmetry_weight": 0.1})], ids=["1-packed", "2-symmetric"]
)
def test_a_killed_run_that_is_resumed_ends_with_the_weights_of_one_that_was_not(workshop, ranks, keys):
    """Killed in its second or third epoch, whose rows come in another order than those of the first."""
    keys = LONG | keys
    whole = workshop.train(f"whole_{ranks}", ranks=ranks, **keys)
    config = workshop.write_config(f"killed_{ranks}", **keys)
    output = workshop.folder / f"killed_{ranks}"
    start = LaunchedRun if ranks == 2 else workshop.runs.start  # by the launch line of the README, and without it
    run = start(config, ranks)
    wait_for(output / "checkpoint-45/pair_pm.json", run)
    run.kill()
    assert not (output / "model.safetensors").exists()
    # What a kill in the middle of a save leaves: the highest number, and not whole.
    (output / "checkpoint-59").mkdir()
    (output / "checkpoint-59/model.safetensors").write_bytes(b"half")
    resumed = start(config, ranks, auto_resume_from_checkpoints="true")
    assert resumed.wait() == 0, resumed.output()[-5000:]
    assert "checkpoint-59: has no pair_pm.json" in resumed.output()
    expected = weights(whole)
    assert weights(output).keys() == expected.keys()
    for name, weight in weights(output).items():
        assert torch.equal(weight, expected[name]), name


def test_a_disk_that_is_full_while_a_checkpoint_is_written_is_said_and_the_one_before_still_resumes(workshop):
    config = workshop.write_config("full", **LONG)
    run = workshop.runs.start(config)
    output = workshop.folder / "full"
    wait_for(output / "checkpoint-15/pair_pm.json", run)
    (worker,) = run.workers
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (65536, 65536))
    assert run.wait() != 0
    (broken,) = {step for step in (30, 45, 60) if f"checkpoint-{step}: the checkpoint could not be" in run.output()}
    assert "room and the right to write are required" in run.output()
    assert not (output / f"checkpoint-{broken}").exists()
    left = output / f"checkpoint-{broken - 15}"
    assert np.isfinite(score(left, workshop.prompts()[:4])).all()
    assert choose(output).resume_from_checkpoint == str(left)


# ---- in process -----------------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="a folder that can be written is required"):
        check_output_dir(DictDefault(output_dir=str(tmp_path / "file/outputs")))
    check_output_dir(DictDefault(output_dir=str(tmp_path / "outputs")))
    assert list((tmp_path / "outputs").iterdir()) == []


def choose(folder, **keys) -> DictDefault:
    cfg = DictDefault(output_dir=str(folder), auto_resume_from_checkpoints=True, **keys)
    resume_from_whole_checkpoint(cfg)
    return cfg


def test_the_last_whole_checkpoint_is_chosen_by_number(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-9/pair_pm.json").touch()
    (tmp_path / "checkpoint-10/pair_pm.json").touch()
    assert choose(tmp_path).resume_from_checkpoint == str(tmp_path / "checkpoint-10")


def test_without_a_whole_checkpoint_axolotl_is_kept_from_taking_a_broken_one(tmp_path):
    (tmp_path / "checkpoint-9").mkdir()
    cfg = choose(tmp_path)
    assert cfg.resume_from_checkpoint is None
    assert cfg.auto_resume_from_checkpoints is False


def test_a_checkpoint_that_was_named_is_taken_as_it_is(tmp_path):
    assert choose(tmp_path, resume_from_checkpoint="elsewhere").resume_from_checkpoint == "elsewhere"
