"""Imports all that training needs, then forks for each line of standard input: one JSON object, one answer.

{"module": ..., "arguments": [...], "log": ..., "environment": {...}} -> {"pid": ...}, {"wait": pid} -> {"code": ...}
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

import rich.progress  # noqa: F401  (this and the next are imported while the command runs)
import timm  # noqa: F401
import torch.onnx
import torch.utils.tensorboard

import linnaeus.cli.main
import linnaeus.runs  # noqa: F401


def launch(request: dict[str, Any]) -> int:
    """Fork, and run a module in the child as `python -m` does."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    torch.set_num_threads(1)
    sys.argv = [request["module"], *request["arguments"]]
    code = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "ready" in request:
            answer = request
        elif "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            answer = {"pid": launch(request)}
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
