"""Probe any torch module: what an MLP's layers say about handwritten digits, before and after training.

pip install '.[examples]' && python scripts/digits.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from softh_probe import SoftEntropyProbe

data = load_digits()
images, digits = torch.from_numpy(data.data).float() / 16, torch.from_numpy(data.target)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
order = torch.randperm(len(images))
train, held_out = order[:1200], order[1200:]


def information(title: str) -> None:
    """Print I(digit; Z) of each layer on the held-out images, in bits."""
    probe = SoftEntropyProbe(net, modules={"fc1": net[0], "fc2": net[2], "fc3": net[4]})
    net.eval()
    with probe, probe.labelled(digit=digits[held_out]), torch.no_grad():
        accuracy = (net(images[held_out]).argmax(-1) == digits[held_out]).float().mean()
    table = probe.result().to_pandas(unit="bits").query("metric == 'mutual_information'").set_index("name").value
    values = "  ".join(f"{layer} {bits:.3f}" for layer, bits in table.items())
    print(f"{title}: accuracy {accuracy:.2f}, I(digit; Z) in bits: {values}")


information("before training")
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
net.train()
for _ in range(40):
    for batch in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), digits[batch]).backward()
        optimizer.step()
information("after training")
