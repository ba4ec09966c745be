#!/usr/bin/env python3
"""The part of Docker's command line that `sandbox.docker` uses, over plain folders below $FAKE_DOCKER.

A container is a folder with its arguments as JSON; it isolates nothing.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile

home = os.environ["FAKE_DOCKER"]
verb, *words = sys.argv[1:]
with open(os.path.join(home, "calls"), "a") as log:
    log.write(json.dumps([verb, *words]) + "\n")


def option(name):
    return words[words.index(name) + 1]


def folder_of(name):
    folder = os.path.join(home, name)
    if not os.path.isdir(folder):
        sys.exit(f"Error: No such container: {name}")
    return folder


if verb == "create":
    image = words.index("an-image") if "an-image" in words else sys.exit("Error: No such image")
    folder = os.path.join(home, option("--name"))
    os.makedirs(os.path.join(folder, "sandbox"))
    env = [words[at + 1] for at, word in enumerate(words) if word == "--env"]
    with open(os.path.join(folder, "state"), "w") as file:
        json.dump({"argv": [option("--entrypoint"), *words[image + 1 :]], "env": env}, file)
elif verb == "cp" and words[0] == "-":
    with tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read())) as archive:
        archive.extractall(folder_of(words[1].partition(":")[0]), filter="data")
elif verb == "cp":
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(os.path.join(folder_of(words[0].partition(":")[0]), "sandbox"), "sandbox")
    sys.stdout.buffer.write(buffer.getvalue())
elif verb == "start":
    folder = folder_of(words[-1])
    with open(os.path.join(folder, "state")) as file:
        state = json.load(file)
    env = {"PATH": os.environ["PATH"]} | dict(entry.partition("=")[::2] for entry in state["env"])
    process = subprocess.Popen(state["argv"], cwd=os.path.join(folder, "sandbox"), env=env, start_new_session=True)
    with open(os.path.join(folder, "pid"), "w") as file:
        file.write(str(process.pid))
    code = process.wait()
    sys.exit(code if code >= 0 else 128 - code)
elif verb == "kill":
    with open(os.path.join(folder_of(words[0]), "pid")) as file:
        os.killpg(int(file.read()), signal.SIGKILL)
elif verb == "inspect":
    sys.stdout.write("true" if os.path.exists(os.path.join(folder_of(words[-1]), "sandbox", "oom")) else "false")
elif verb == "rm":
    shutil.rmtree(folder_of(words[-1]))
