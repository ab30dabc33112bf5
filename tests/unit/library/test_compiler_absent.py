"""Optimizers without torch's compiler end in the same bits; and it is there, whole, as soon as somebody wants it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINS = """
import sys
import torch
from codistill.compiler_absent import compiler_absent

def trained():
    torch.manual_seed(0)
    net, ends = torch.nn.Linear(4, 3), []
    for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad):
        optimizer = kind(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        ends.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach())
    return torch.stack(ends)

with compiler_absent():
    without = trained()
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""
WANTED = {
    "compiled": """
class Net(torch.nn.Linear):  # torch's own are not looked into
    def forward(self, x):
        return x @ self.weight.T + self.bias
net = Net(4, 3)
plain = net(torch.ones(2, 4))
graphs = []
net.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
assert torch.equal(net(torch.ones(2, 4)), plain)
assert len(graphs) == 1
with compiler_absent():
    assert torch.equal(trained(), without)
net(torch.ones(2, 4))
assert len(graphs) == 1, "still compiled"

optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
@torch.compile(backend="eager")
def step():
    optimizer.zero_grad()
    return torch.ones(1)
step()
plain = torch.optim.Optimizer.zero_grad.__wrapped__
assert plain.__dynamo_disable is not plain, "torch asked the real one"
""",
    "a part": """
import torch._dynamo.config
from torch._dynamo import convert_frame
assert torch._dynamo.config is convert_frame.config
""",
    "in the middle of it": """
with compiler_absent():
    zero_grad = torch.optim.Optimizer.zero_grad
    trained()
    assert zero_grad.__wrapped__.__dynamo_disable is zero_grad.__wrapped__
    @torch._dynamo.disable(recursive=False)
    def alone(x):
        return x + 1
    assert torch._dynamo.__file__
    assert not hasattr(zero_grad.__wrapped__, "__dynamo_disable")
    assert torch._dynamo.convert_frame is sys.modules["torch._dynamo.convert_frame"]
    trained()
assert sys.modules["torch._dynamo"].__file__, "who found it there leaves it there"
""",
}
EQUAL = """
assert torch.equal(trained(), without)
import torch._dynamo
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.__file__, "the real one"
"""


@pytest.mark.parametrize("wanted", WANTED)
def test_it_is_not_missed_and_there_when_wanted(wanted: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINS + WANTED[wanted] + EQUAL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_replica_does_without(tmp_path: Path) -> None:
    """From its first optimizer to its last checkpoint; and so does the process that it is a fork of."""
    spec, training = tmp_path / "spec.json", {"steps": 2, "batch_size": 8}
    spec.write_text(json.dumps({"recipe": {"kind": "digits"}, "method": {"kind": "solo"}, "training": training}))
    command = [sys.executable, "-P", "-m", "codistill.local", spec, "--storage", tmp_path, "--job", "job"]
    tells = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}  # all that it imports
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=tells)
    assert done.returncode == 0, done.stderr
    outputs = [path.read_text() for path in tmp_path.rglob("*.stderr")]
    assert outputs
    for imported in (done.stderr, *outputs):
        assert "import time:" in imported
        assert "sympy" not in imported
