"""The steps of an engine as vLLM takes them, replayed: recorded hidden states, scheduled in pieces of many requests."""

from types import SimpleNamespace

import torch
from torch import nn


def recorded_pairs(model, doc):
    """Run a Llama on one document; give what the first block takes, and (delta, residual) of each block [T, D]."""
    found = {"pairs": []}
    blocks = model.model.layers
    handles = [blocks[0].register_forward_pre_hook(lambda _m, args: found.update(embeddings=args[0][0].clone()))]
    for block in blocks:
        norm, mlp = block.post_attention_layernorm, block.mlp
        handles.append(norm.register_forward_pre_hook(lambda _m, args: found.update(residual=args[0][0].clone())))
        handles.append(
            mlp.register_forward_hook(lambda _m, _a, out: found["pairs"].append((out[0].clone(), found["residual"])))
        )
    with torch.no_grad():
        model(torch.tensor([doc]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found["embeddings"], found["pairs"]


class ReplayedBlock(nn.Module):
    """Gives what was recorded, after its norm has spoilt in place what it takes, as fused kernels do."""

    def __init__(self, step, number, *, holds_residual):
        super().__init__()
        self.step, self.number, self.holds_residual = step, number, holds_residual

    def forward(self, positions, hidden_states, residual):
        for spoilt in (hidden_states, residual):
            if spoilt is not None:
                spoilt.fill_(torch.nan)
        delta = self.step.rows(lambda of, t: of[1][self.number][0][t])
        residual = self.step.rows(lambda of, t: of[1][self.number][1][t])
        return (delta + residual, residual) if self.holds_residual else (delta, residual)


class FusedNorm(nn.Module):
    """Adds and norms in place; a Cohere's norm hands on the residual as it is."""

    def __init__(self, norm, *, adds):
        super().__init__()
        self.weight, self.inner, self.adds = nn.Parameter(norm.weight.detach()), [norm], adds

    def forward(self, hidden_states, residual):
        if self.adds:
            hidden_states = residual.add_(hidden_states)
        return self.inner[0](hidden_states), residual


class ReplayedModel(nn.Module):
    """A model of the engine's: flat tokens of many requests, and padding."""

    def __init__(self, model, step, *, holds_residual=False):
        super().__init__()
        self.step = step
        self.model = nn.Module()
        n_blocks = len(model.model.layers)
        self.model.layers = nn.ModuleList(
            ReplayedBlock(step, i, holds_residual=holds_residual) for i in range(n_blocks)
        )
        self.model.norm = FusedNorm(model.model.norm, adds=not holds_residual)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        hidden_states, residual = self.step.rows(lambda of, t: of[0][t]), None
        for layer in self.model.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        return self.model.norm(hidden_states, residual)[0]


class Step:
    """The rows of the step that runs: request and position, None where there is padding."""

    def __init__(self, recorded):
        self.recorded = recorded
        self.at = []

    def rows(self, pick):
        found = [None if at is None else pick(self.recorded[at[0]], at[1]) for at in self.at]
        width = next(row for row in found if row is not None).shape[-1]
        return torch.stack([torch.full((width,), torch.nan) if row is None else row for row in found])


class ReplayingRunner:
    """A model runner: V1 keeps the order of its rows itself, V2 hands it on with the step's results."""

    def __init__(self, model, docs, *, kind="V1", padding=3, holds_residual=False):
        self.docs, self.kind, self.padding = docs, kind, padding
        self.step = Step({name: recorded_pairs(model, doc) for name, doc in docs.items()})
        self.model = ReplayedModel(model, self.step, holds_residual=holds_residual)
        self.n_computed: dict[str, int] = {}
        self.buffers = {name: torch.full((256,), 77) for name in ("input_ids", "positions")}  # used in every step
        self.n_steps = 0

    def get_model(self):
        return self.model

    @torch.inference_mode()
    def execute_model(self, scheduler_output, dummy_run=False):
        n_scheduled = scheduler_output.num_scheduled_tokens
        for name in scheduler_output.preempted:
            self.n_computed[name] = 0
        if not n_scheduled:
            return "nothing to do"
        order = sorted(n_scheduled, key=lambda name: (n_scheduled[name], name))  # not that of the scheduler
        batch = SimpleNamespace(req_ids=order)
        if self.kind == "V1":
            self.input_batch, self.execute_model_state = batch, SimpleNamespace(logits=None)
        else:
            self.execute_model_state = SimpleNamespace(input_batch=batch)
        begins = {name: self.n_computed.get(name, 0) for name in order}
        at = [(name, t) for name in order for t in range(begins[name], begins[name] + n_scheduled[name])]
        self.step.at = [*at, *[None] * self.padding]
        n = len(self.step.at)
        self.buffers["input_ids"][: len(at)] = torch.tensor([self.docs[name][t] for name, t in at])
        self.buffers["positions"][: len(at)] = torch.tensor([t for _, t in at])
        self.model(**{name: buffer[:n] for name, buffer in self.buffers.items()}, inputs_embeds=None)
        if not dummy_run:
            self.n_computed |= {name: begins[name] + n_scheduled[name] for name in order}
        self.n_steps += 1
        return None


def scheduled(docs, prompts, rng, budget=14, preempted_at=()):
    """Yield the steps of a scheduler: chunks of prompts and single written tokens, some requests at a time.

    Args:
        docs: tokens of each request, those that it writes among them; the last one is never computed.
        prompts: how many of them are the prompt.
        rng: Python's random numbers.
        budget: tokens of a step.
        preempted_at: numbers of steps in which the request that is furthest is preempted.
    """
    waiting, running, finished = list(docs), {}, set()
    known = dict(prompts)  # tokens that can be computed at once
    number = 0
    while waiting or running or finished:
        while waiting and len(running) < 4 and rng.random() < 0.7:
            running[waiting.pop(0)] = 0
        preempted = []
        if number in preempted_at and running:
            name = max(running, key=running.get)
            del running[name]
            waiting.insert(0, name)
            preempted = [name]
        left, chosen = budget, {}
        for name in rng.sample(sorted(running), len(running)):
            if not left or rng.random() < 0.1:
                continue
            chosen[name] = min(left, known[name] - running[name], rng.choice([3, 6, 40]))
            left -= chosen[name]
        yield SimpleNamespace(num_scheduled_tokens=chosen, finished_req_ids=finished, preempted=preempted)
        finished = set()
        for name, n in chosen.items():
            running[name] += n
            known[name] = max(known[name], running[name] + 1)  # the last chunk writes a token
            if running[name] == len(docs[name]) - 1:
                del running[name]
                finished.add(name)
        number += 1
