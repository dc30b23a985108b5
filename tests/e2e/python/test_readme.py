"""README's commands run as they stand there, but for address and directory, and end as it says."""

import json
import os
import re
import subprocess
from pathlib import Path

from harness import PATIENCE_S, running

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
CARGO = "cargo run --release -- "


def block(words: str) -> str:
    """The one block in which these words stand."""
    (found,) = [block for block in BLOCKS if words in block]
    return found


def line(words: str) -> list[str]:
    """What the line with these words gives to the program."""
    (found,) = [line for line in block(words).splitlines() if words in line]
    return found.partition("#")[0].removeprefix(CARGO).split()


def shell(script: str, directory: Path, **env: str) -> str:
    """What a script says in which `llmq` and cargo's long form are the program."""
    program = f'llmq() {{ "{Path(os.environ["LLMQ_BIN"]).resolve()}" "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-euc", program + script.replace(CARGO, "llmq ")],
        cwd=directory,
        env={**os.environ, "NO_COLOR": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=6 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_first_command_finishes_its_rows(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = block("places.out.jsonl").rstrip() + " --limit-rows 500\n"
    said = shell(script, tmp_path)
    assert re.search(r"\b500 completed\b", said), said
    lines = (tmp_path / "places.out.jsonl").read_text().splitlines()
    assert len(lines) == 500
    assert all(json.loads(line)["error"] is None for line in lines)


def test_the_sixth_of_seven_calls_waits(tmp_path):
    with running(*line("serve --mock --mock-limit"), "--listen", "127.0.0.1:0") as server:
        said = shell(block("for i in 1 2 3"), tmp_path, OPENAI_BASE_URL=server.openai)
    assert said.count("200 OK") == 7, said
    waited = [int(ms) for ms in re.findall(r"x-llmq-queued-ms: (\d+)", said, re.IGNORECASE)]
    assert waited[5] > 2_000 > max(waited[:5]), said
    assert "quota-window mock/gpt-4o-mini" in said


def test_a_request_is_handed_in_and_listed(tmp_path):
    serve = line("serve --mock --store")
    serve[serve.index("sqlite:llmq.db")] = f"sqlite:{tmp_path}/llmq.db"
    script = block("requests submit").partition("\n\n")[2]
    with running(*serve, "--listen", "127.0.0.1:0") as server:
        said = shell(script, tmp_path, LLMQ_BASE_URL=f"http://{server.address}")
    assert "completed" in said, said
