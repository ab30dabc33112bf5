"""A process without torch's compiler trains to the same bits, and has it as soon as somebody wants it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINS = """
import inspect, sys
import torch
from codistill.compiler_absent import leave_out

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

leave_out()
without = trained()
inspect.getmodule(inspect.currentframe())  # looks through all modules
assert "sympy" not in sys.modules
"""
EQUAL = """
assert torch.equal(trained(), without)
import torch._dynamo
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.__file__, "the real one"
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
""",
    "a part": "import torch._dynamo.utils; assert torch._dynamo.utils.get_optimize_ddp_mode()",
    "disabled for good": """
@torch.compiler.disable
def alone(x):
    return x + 1
graphs = []
@torch.compile(backend=lambda graph, _: graphs.append(graph.code) or graph.forward)
def traced(x):
    return alone(x) * 2
assert traced(torch.ones(1)) == 4
assert len(graphs) == 1 and "+" not in graphs[0], "what was disabled is not looked into"
""",
    "an optimizer's step": """
net = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
optimizer.zero_grad()
@torch.compile(backend="eager")
def step():
    optimizer.zero_grad()
    return torch.ones(1)
step()
told = torch.optim.Optimizer.zero_grad.__wrapped__.__dynamo_disable
assert told is not torch.optim.Optimizer.zero_grad.__wrapped__, "torch asked the real one again"
""",
}


@pytest.mark.parametrize("wanted", WANTED)
def test_it_is_not_missed_and_there_when_wanted(wanted: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINS + WANTED[wanted] + EQUAL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_replicas_of_one_rank_do_without(tmp_path: Path) -> None:
    """On this machine: of all that its process imports, nothing is the compiler's."""
    spec = tmp_path / "spec.json"
    training = {"steps": 2, "batch_size": 8}
    spec.write_text(json.dumps({"recipe": {"kind": "digits"}, "method": {"kind": "solo"}, "training": training}))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "codistill.local", spec, "--storage", tmp_path, "--job", "job"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported = done.stderr + "".join(output.read_text() for output in tmp_path.rglob("*.stderr"))
    assert "torch.optim" in imported, "the fork server and the replica tell"
    assert "sympy" not in imported


def test_workers_on_ray_do_without() -> None:
    code = """
import sys
from unittest.mock import Mock, patch
from cluster import worker
run = Mock(**{"read_spec.return_value.on_cuda": False})
given = dict(storage="/", data_home="/", job="job", fence=1, index=0, arm="replica", namespace="test")
with patch("codistill.replica.train_replica", lambda *_, **__: sys.modules["torch._dynamo"]):
    with patch.object(worker, "RunDir", lambda *_: run):
        assert not hasattr(worker.train(given), "__file__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
