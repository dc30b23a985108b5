"""The guide's examples in Python run as they stand there, but for address and key."""

import re
from pathlib import Path

import pytest

from harness import running

GUIDE = Path(__file__).parents[3] / "docs/src"
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples(*chapters, without="llama_index"):
    for chapter in chapters:
        for number, code in enumerate(FENCE.findall((GUIDE / chapter).read_text()), start=1):
            if without not in code:
                yield pytest.param(code, id=f"{chapter} {number}")


@pytest.fixture(scope="module")
def server():
    with running("serve", "--mock", "--listen", "127.0.0.1:0") as server:
        yield server


@pytest.mark.parametrize("code", examples("sdks.md", "frameworks.md", "from-litellm.md"))
def test_an_example_runs_and_says_something(code, server, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", server.openai)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.anthropic)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "llmq_test")
    code = code.replace("127.0.0.1:8080", server.address).replace("llmq_…", "llmq_test")
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    if "except" not in code:
        assert capsys.readouterr().out.strip()
