"""Run fairseq's console scripts in test, without importing torch anew for every command.

A server process imports what fairseq imports, and transformers if it is there (not this package),
and computes nothing. Each command is a fork of it that executes the installed console script at the
top level of the interpreter, so exit codes, tracebacks and signals are those of a process of its
own, 5 s sooner.
``Commands(..., fresh=True)`` starts an ordinary process instead.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

USER_DIR = Path(__file__).resolve().parents[1] / "esrl_fairseq"
TIMEOUT = 180

SERVER = """
import json, logging, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
import fairseq, fairseq.trainer, fairseq.sequence_generator, sacrebleu, sacremoses, torch._dynamo
try:
    from transformers import AutoTokenizer, LlamaForCausalLM
except ImportError:
    pass  # the extra hf is not installed
logging.root.handlers.clear()  # every script sets up its own
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        deadline = time.monotonic() + job["timeout"]
        pid = 0
        while not pid:
            pid, status = os.waitpid(job["wait"], os.WNOHANG)
            if not pid and time.monotonic() > deadline:
                os.kill(job["wait"], 9)
            time.sleep(0.005)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if not pid:
        break
    print(pid, flush=True)
else:
    sys.exit()
for number, name in enumerate(job["streams"]):
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(name, flags), number)
sys.stdin = open(0)
os.environ.update(job["environment"])
os.chdir(job["cwd"])
sys.argv = job["argv"]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""


def environment():
    """This process's environment, single-threaded, with torch's safe loader left as it is.

    Commands see no GPU, unless ``ESRL_TEST_DEVICE`` is ``cuda`` (benchmarks/gpu.sh).
    """
    unwanted = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "MASTER_ADDR", "WORLD_SIZE", "RANK")
    env = {key: value for key, value in os.environ.items() if key not in unwanted}
    env.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if env.get("ESRL_TEST_DEVICE") != "cuda":
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def script(name):
    """The console script beside this Python, or on the path; a path is itself."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@dataclass
class Result:
    """What a finished command left."""

    returncode: int
    stdout: str
    stderr: str

    def logged(self, name):
        """The JSON log lines of ``name`` (``train_inner``, ``train`` or ``valid``), as numbers."""
        return json_lines(self.stdout, name)

    def lines(self, prefix):
        """Lines of stdout that begin with ``prefix``, by sample number: {number: text}."""
        split = (line.split("\t") for line in self.stdout.splitlines() if line.startswith(prefix))
        return {int(fields[0][len(prefix) :]): fields[-1] for fields in split}


def json_lines(text, name):
    """The JSON log lines of ``name`` in ``text``; a half-written last line is left out."""
    found = []
    for line in text.splitlines():
        fields = line.split(" | ", 3)
        if len(fields) == 4 and fields[2] == name and fields[3].endswith("}"):
            values = json.loads(fields[3]).items()
            values = ((key.removeprefix(f"{name}_"), value) for key, value in values)
            found.append({key: number(value) for key, value in values if value is not None})
    return found


def words(options):
    """Command-line words; a string that begins with ``--`` may hold several, split at spaces."""
    result = []
    for option in options:
        several = isinstance(option, str) and option.startswith("--")
        result += option.split() if several else [str(option)]
    return result


def number(value):
    """JSON logs hold numbers as strings; ``samples_hist`` is not a number."""
    try:
        return float(value)
    except ValueError:
        return value


class Commands:
    """Runs commands in a folder.

    Args:
        folder: where the commands run and leave their output.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )

    def in_folder(self, folder):
        """The same, but in another folder."""
        other = object.__new__(type(self))
        other.folder, other.count, other.server = Path(folder), 0, self.server
        return other

    def close(self):
        """End the server."""
        self.server.stdin.close()
        self.server.wait()

    def ask(self, job):
        """One question to the server, answered by a number."""
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, name, *options, stdin="", environment=None):
        """Start a command and return it without waiting; with more variables in its environment."""
        self.count += 1
        streams = [self.folder / f"{self.count}.{stream}" for stream in ("in", "out", "err")]
        streams[0].write_text(stdin)
        argv = [script(name), *words(options)]
        job = {"argv": argv, "cwd": str(self.folder), "streams": [str(path) for path in streams]}
        job["environment"] = environment or {}
        return Running(self, self.ask(job), streams)

    def run(self, name, *options, stdin="", fresh=False):
        """Run a command to its end, whatever that is."""
        if not fresh:
            return self.start(name, *options, stdin=stdin).wait()
        done = subprocess.run(
            [script(name), *words(options)],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=environment(),
            timeout=TIMEOUT,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def succeed(self, name, *options, **keywords):
        """Run a command that has to work."""
        result = self.run(name, *options, **keywords)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result

    def ranks(self, number, *command, environment=None):
        """Start a command on so many ranks, as ``torchrun`` does, and return them."""
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            **(environment or {}),
        }
        shared["WORLD_SIZE"] = str(number)
        own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
        return [self.start(*command, environment={**shared, **variables}) for variables in own]

    def two_ranks(self, command_of_rank):
        """Run a training on two gloo ranks, which has to work: the results of both.

        Args:
            command_of_rank: the command of rank 0 or 1 without what joins them.
        """
        results = [command.wait() for command in self.start_two_ranks(command_of_rank)]
        for result in results:
            assert result.returncode == 0, result.stderr[-4000:]
        return results

    def start_two_ranks(self, command_of_rank):
        """Start what :meth:`two_ranks` runs, without waiting."""
        joined = (
            f"--distributed-init-method tcp://127.0.0.1:{free_port()} --distributed-world-size 2 "
            "--distributed-no-spawn --distributed-backend gloo --ddp-backend legacy_ddp"
        )
        return [
            self.start(*command_of_rank(rank), f"{joined} --distributed-rank {rank}")
            for rank in range(2)
        ]


@dataclass
class Running:
    """A command that was started."""

    commands: Commands
    pid: int
    streams: list

    def stdout(self):
        """What it has written so far."""
        return self.streams[1].read_text() if self.streams[1].exists() else ""

    def logged(self, name):
        """The JSON log lines of ``name`` so far, see :meth:`Result.logged`."""
        return json_lines(self.stdout(), name)

    def wait(self, timeout=TIMEOUT):
        """Wait for its end (it is killed after that many seconds)."""
        code = self.commands.ask({"wait": self.pid, "timeout": timeout})
        return Result(code, self.stdout(), self.streams[2].read_text())


MODEL = (
    "--arch transformer --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 "
    "--decoder-embed-dim 32 --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32 "
    "--encoder-attention-heads 2 --decoder-attention-heads 2 --dropout 0.1"
)
COMMON = (
    "--optimizer adam --clip-norm 1.0 --batch-size 20 --required-batch-size-multiple 1 "
    "--num-workers 0 --seed 1 --log-format json --log-interval 1 --no-progress-bar"
)
JOINED = "--share-all-embeddings"
FRESH = "--reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters"


def esrl_options(data, save_dir, task="esrl_translation"):
    """Options of a fine-tuning run, those of the model left out.

    Most tests begin with a random model, or one that is half trained, and do not validate it.
    """
    options = f"--task {task} --criterion esrl --lr 2e-4 --check-start off"
    return [data, "--user-dir", USER_DIR, options, "--save-dir", save_dir, COMMON]


def gone(pid):
    """Whether a process has ended; zombies have."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (OSError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def free_port():
    """A port on which several ranks can find each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
