"""Where bugs like those of ``BUGS`` were reported, by the name of the bug.

A report is an address, or a link to docs/findings.md. ``test_wrong`` makes the table of
docs/wrong-losses.md from it.
"""

LIGER = "[Liger-Kernel 0.8.5](findings.md#liger-kernel-085)"
RIVALS = "findings.md#what-people-train-with-run-on-2026-11-27"
FLA = f"[fla-core 0.6.0]({RIVALS})"
TRL = f"[TRL 1.16.0]({RIVALS})"
TORCH = "findings.md#torch-2130"  # how headings about torch 2.13.0 begin

REPORTS = {
    "first_upstream": ("https://github.com/linkedin/Liger-Kernel/issues/968",),
    "first_ignored": ("https://github.com/linkedin/Liger-Kernel/issues/678",),
    "vocab_256": ("https://github.com/verl-project/verl/issues/2899",),
    "overwrites_in_forward": (
        "https://github.com/linkedin/Liger-Kernel/issues/272",
        "https://github.com/linkedin/Liger-Kernel/issues/343",
    ),
    "overwrites_in_backward": ("https://github.com/unslothai/unsloth/issues/5002",),
    "all_ignored_is_zero": (LIGER, FLA),
    "no_share": (
        f"[torch 2.13.0]({TORCH}-chunked-flinear_cross_entropy-"
        "has-nan-gradients-if-all-rows-are-ignored)",
    ),
    "column_major": (LIGER,),
    "scaled_in_place": (LIGER, FLA),
    "unscaled_layout": ("[Liger-Kernel 0.8.4](findings.md#liger-kernel-081-to-084)",),
    "second_derivative": (
        f"[torch 2.13.0]({TORCH}-once_differentiable-lets-a-gradient-penalty-pass-for-a-constant)",
        LIGER,
    ),
    "z_loss_ignored": (f"[OLMo-core 3.0.0]({RIVALS})",),
    "many_chunks": (
        "https://github.com/axolotl-ai-cloud/axolotl/pull/1601",
        "https://github.com/apple/ml-cross-entropy/issues/14",
    ),
    "half_value": (
        f"[torch 2.13.0]({TORCH}-chunked-flinear_cross_entropy-gives-a-wrong-loss-in-bfloat16)",
    ),
    "frozen_input": (LIGER,),
    "local_smoothing": ("https://github.com/NVIDIA/Megatron-LM/issues/7452",),
    "input_not_reduced": ("https://github.com/NVIDIA/Megatron-LM/issues/5337",),
    "entropy_of_logits": (TRL, f"[Liger-Kernel 0.8.5]({RIVALS})"),
    "zero_times_infinity": (TRL,),
    "ignored_times_0": (
        f"[torch 2.13.0]({TORCH}-chunked-flinear_cross_entropy-is-nan-if-an-ignored-row-is)",
    ),
    "half_softmax": (
        "https://github.com/linkedin/Liger-Kernel/pull/1329",
        "https://github.com/linkedin/Liger-Kernel/pull/1419",
        "[torch 2.11.0 and 2.13.0](findings.md#torch-2110-and-2130-in-half-precision-the-gradient-"
        "of-a-sure-target-is-lost-on-a-cpu)",
    ),
    "half_if_gradient": (
        "https://github.com/linkedin/Liger-Kernel/pull/1372",
        "https://github.com/linkedin/Liger-Kernel/pull/1430",
    ),
    "micro_batch_mean": ("https://github.com/huggingface/transformers/issues/24725",),
}
