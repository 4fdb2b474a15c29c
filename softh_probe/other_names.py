"""What other tools call the fields of a run."""

from __future__ import annotations

#: Names that other tools have for a field: lm_eval's, those of transformers' scripts, and words that come to mind.
_OTHER_NAMES = {
    "model": "pretrained model_args model_name model_name_or_path pretrained_model_name_or_path model_id model_path "
    "base_model checkpoint checkpoint_path ckpt hf_model",
    "revision": "model_revision commit",
    "dtype": "torch_dtype precision bf16 fp16 fp32 half bfloat16 float16 float32",
    "device_map": "device devices gpu gpus cuda cpu use_cpu no_cuda accelerator parallelize",
    "model_kwargs": "attn_implementation load_in_8bit load_in_4bit quantization quantization_config variant "
    "low_cpu_mem_usage from_pretrained_kwargs",
    "tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path",
    "data": "dataset datasets dataset_name dataset_path dataset_dir data_path data_dir data_file data_files tasks task "
    "corpus input input_file train_file validation_file test_file",
    "subset": "dataset_config dataset_config_name dataset_subset",
    "data_revision": "dataset_revision",
    "split": "dataset_split",
    "text_column": "text_column_name text_field text_key dataset_text_field column",
    "max_documents": "limit num_samples n_samples max_samples max_eval_samples max_train_samples num_documents "
    "n_documents max_docs num_examples max_examples",
    "max_tokens": "num_tokens n_tokens token_limit token_budget total_tokens",
    "stream": "streaming",
    "max_length": "max_seq_length max_seq_len max_len seq_len seq_length sequence_length context_length block_size "
    "model_max_length",
    "overflow": "truncation",
    "shuffle_seed": "shuffle data_seed",
    "chat_template_kwargs": "apply_chat_template chat_template_args",
    "positions": "assistant_only_loss completion_only_loss train_on_completions_only train_on_responses_only "
    "train_on_inputs token_positions which_positions position_policy",
    "skip_special_tokens": "ignore_special_tokens exclude_special_tokens without_special_tokens remove_special_tokens",
    "labels": "label label_sets ngrams",
    "label_rows": "max_labels max_rows label_sample n_label_rows",
    "permute_within": "permute_by group_by group_column groups strata",
    "intervals": "confidence_intervals error_bars standard_errors confidence ci",
    "interval_documents": "bootstrap_documents bootstrap_iters",
    "n_anchors": "num_anchors",
    "anchor_sets": "n_anchor_sets num_anchor_sets n_sets num_sets",
    "calibration": "temperature epsilon",
    "layers": "layer layer_indices",
    "mean_over": "average_over average_layers mean_layers",
    "sites": "site hook_points components",
    "modules": "module module_names target_modules hook_modules",
    "tokens_per_batch": "batch_size bs max_batch_size eval_batch_size per_device_batch_size "
    "per_device_eval_batch_size per_device_train_batch_size per_gpu_eval_batch_size",
    "out": "output output_path output_dir output_folder output_file out_dir outdir save_dir save_path results_dir",
    "cache": "cache_dir use_cache cache_requests overwrite_cache",
    "overwrite": "overwrite_output_dir force",
    "resume": "resume_from_checkpoint",
    "seed": "random_seed",
}
_FIELD_OF = {other: field for field, others in _OTHER_NAMES.items() for other in others.split()}

#: What differs from the other tools' fields.
_DIFFERENCES = {
    "model": "a hub id, a local folder, or a .gguf file",
    "dtype": "auto, float32, bfloat16 or float16",
    "device_map": "cpu, cuda:0, …, or auto",
    "data": "a hub id, a file, or a folder",
    "max_tokens": "it counts tokens of the whole corpus",
    "positions": "all, assistant, completion, last, first:N, skip:N, or several with commas",
    "tokens_per_batch": "it counts tokens, padding included, not documents",
    "cache": "a folder for tokenised corpora and plans; HF_HOME is that of downloads",
    "calibration": "exact, leading_order, amos, or the temperature as a number",
}


def our_name(other: str) -> tuple[str, str] | None:
    """Find the field that another tool calls otherwise, and what is different about it.

    >>> our_name("batch_size")
    ('tokens_per_batch', 'it counts tokens, padding included, not documents')
    """
    field = _FIELD_OF.get(other)
    return (field, _DIFFERENCES.get(field, "")) if field else None
