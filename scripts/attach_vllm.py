"""Layers while vLLM runs: python scripts/attach_vllm.py MODEL PROMPTS.txt --out OUT (a line is a prompt)

pip install vllm first, in an environment that has softh-probe. No hidden state is stored: the engine's workers add them
to the sums of a meter, by scripts/vllm_meter.py. It was written from the source of vLLM 0.11 to 0.33, and not run.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """Read the arguments, run the engine, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="as vLLM takes it: hub id or folder")
    parser.add_argument("prompts", type=Path, help="text file, a prompt on each line")
    parser.add_argument("--out", type=Path, default=Path("out/vllm"), help="folder of the result")
    parser.add_argument("--labels", default="input_unigram,output_unigram", help="label sets of n-grams")
    parser.add_argument(
        "--max-tokens", type=int, default=1, help="tokens to write; the last one is never read, so 1: none"
    )
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that hold one model")
    parser.add_argument(
        "--tokens-per-step", type=int, default=2048, help="whose states of all layers are held at a time"
    )
    given = parser.parse_args()
    if find_spec("vllm") is None:
        print("attach_vllm.py: vllm is not installed; pip install vllm, where there is a GPU", file=sys.stderr)
        return 2
    from vllm import LLM, SamplingParams
    from vllm_meter import ENGINE

    from softh_probe import ProbeResult

    prompts = [line.strip() for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    llm = LLM(
        given.model,
        worker_extension_cls="vllm_meter.MeterWorker",
        tensor_parallel_size=given.tensor_parallel,
        max_num_batched_tokens=given.tokens_per_step,
        gpu_memory_utilization=0.8,  # the states of a step, and the sums, need some
        **ENGINE,
    )
    llm.collective_rpc("softh_attach", args=({"labels": given.labels.split(",")},))
    llm.generate(prompts, SamplingParams(max_tokens=given.max_tokens))
    positions = sum(llm.collective_rpc("softh_save", args=(str(given.out.resolve()), f"{given.model} in vLLM")))
    table = ProbeResult.load(given.out).to_pandas()
    print(f"{positions} positions", table.to_string(index=False), sep="\n")
    return 0


if __name__ == "__main__":  # vLLM's processes import this file
    sys.exit(main())
