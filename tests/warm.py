"""Call ``run.py`` in a process that has imported the libraries already.

Importing torch and lightning takes a command eight seconds. A server, one per test process, imports them
once and forks for every command: the same ``run.py`` in a process of its own, with its own folder,
environment, outputs and exit code. What happens before the imports (start-up, help, environment variables
that libraries read when they are imported) is tested with ``cli.run``.
"""

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cli import ROOT, environment

LIBRARIES = "torch torchvision torchmetrics lightning.pytorch hydra omegaconf rich.console PIL"
SERVER: list[subprocess.Popen] = []


def run(*arguments, cwd, timeout=300):
    """Finished process with text output, as ``cli.run`` returns it."""
    if not SERVER or SERVER[0].poll() is not None:
        SERVER[:] = [_started()]
    server = SERVER[0]
    with tempfile.TemporaryDirectory() as place:
        outputs = [str(Path(place, name)) for name in ("stdout", "stderr")]
        asked = {"argv": arguments, "cwd": str(cwd), "outputs": outputs, "timeout": timeout}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the warm process is gone"
        texts = [Path(path).read_text("utf-8") for path in outputs]
    code = json.loads(answer)
    if code is None:
        raise subprocess.TimeoutExpired(list(arguments), timeout, *texts)
    return subprocess.CompletedProcess(list(arguments), code, *texts)


def _started():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, __file__], env=environment(), **pipes)
    atexit.register(server.kill)
    return server


def serve():
    """Answer every line of the input with the exit code of the run that it asks for."""
    for library in LIBRARIES.split():
        __import__(library)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            become(**asked)
        answers.write(json.dumps(_code(child, asked["timeout"])) + "\n")
        answers.flush()


def become(argv, cwd, outputs, timeout):
    """Be ``python run.py argv`` in ``cwd``; ends the process."""
    del timeout
    os.setsid()
    for number, path in enumerate(("/dev/null", *outputs)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    sys.argv = [str(ROOT / "run.py"), *argv]
    sys.path[0] = str(ROOT)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit(0)


def _code(child, timeout):
    """Exit code of a process; None when it had to be killed."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    serve()
