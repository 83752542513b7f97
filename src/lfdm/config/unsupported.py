"""Names of diffusers that do not exist here: why not, and what to use instead."""

import difflib
from collections.abc import Collection, Iterable

from lfdm.errors import UserError

_CONDITION = "conditions are labels, text or embedding tensors: give `condition`"
_NEGATIVE = "give `negative_condition`"
_SIZE = "videos have the model's image_size, to which images are fitted; write_video and `lfdm generate --scale` enlarge them"
_SEVERAL = "give `num_videos`"
_CALLBACK = "give `callback_on_step_end`, which gets the step and {'latents': sample} and may return another sample"
_ATTENTION = "attention runs in torch's scaled_dot_product_attention, which needs no setting"
_LEVELS = "noise levels belong to the scheduler: set `pipe.scheduler` and give `num_inference_steps`"
_DECODER = "frames are decoded a few at a time in bounded memory, which needs no setting"
_OFFLOAD = "the networks take less memory than the frames of a call: give dtype=torch.float16, or call to('cpu')"
_DEVICE = "give `device`; all networks are on one device"
_COMPONENT = "load the pipeline, then set the component, as in pipe.scheduler = scheduler"
_CODE = "nothing in a model folder is executed; import the module of your own classes first"
_ADAPTER = "models are adapted by `lfdm adapt` and by training from `--init`"
_HOOKS = "no hooks are installed"

UNSUPPORTED = {
    **dict.fromkeys(("prompt", "prompt_embeds", "label", "labels", "class_labels", "text", "action"), _CONDITION),
    **dict.fromkeys(("negative_prompt", "negative_prompt_embeds", "negative_label"), _NEGATIVE),
    **dict.fromkeys(("height", "width", "target_size", "original_size"), _SIZE),
    **dict.fromkeys(("num_videos_per_prompt", "num_images_per_prompt"), _SEVERAL),
    **dict.fromkeys(("callback", "callback_steps", "callback_on_step_end_tensor_inputs"), _CALLBACK),
    **dict.fromkeys(("cross_attention_kwargs", "attention_kwargs", "joint_attention_kwargs", "attention_mask"), _ATTENTION),
    **dict.fromkeys(("timesteps", "sigmas", "eta", "denoising_end", "guidance_rescale"), _LEVELS),
    **dict.fromkeys(("decode_chunk_size", "enable_vae_slicing", "disable_vae_slicing"), _DECODER),
    **dict.fromkeys(("enable_vae_tiling", "disable_vae_tiling"), _DECODER),
    **dict.fromkeys(("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"), _OFFLOAD),
    **dict.fromkeys(("enable_attention_slicing", "disable_attention_slicing", "set_attention_slice"), _ATTENTION),
    **dict.fromkeys(("enable_xformers_memory_efficient_attention", "disable_xformers_memory_efficient_attention"), _ATTENTION),
    **dict.fromkeys(("set_attn_processor", "fuse_qkv_projections", "unfuse_qkv_projections", "enable_freeu"), _ATTENTION),
    **dict.fromkeys(("device_map", "max_memory", "offload_folder", "offload_state_dict", "reset_device_map"), _DEVICE),
    **dict.fromkeys(("scheduler", "unet", "autoencoder", "motion_codec"), _COMPONENT),
    **dict.fromkeys(("trust_remote_code", "custom_pipeline", "custom_revision"), _CODE),
    **dict.fromkeys(("load_lora_weights", "load_ip_adapter", "load_textual_inversion", "ip_adapter_image"), _ADAPTER),
    **dict.fromkeys(("maybe_free_model_hooks", "remove_all_hooks"), _HOOKS),
    "seed": "give `generator`, a number or a torch.Generator",
    "strength": "give `motion_strength`",
    "fps": "`lfdm.data.video.write_video` takes the frame rate",
    "low_cpu_mem_usage": "the networks are small enough to be built before their weights are read",
    "quantization_config": "give dtype=torch.float16 or torch.bfloat16",
    "max_shard_size": "a model's weights are one file",
    "proxies": "set the environment variable HTTPS_PROXY",
    "half": "call to(torch.float16)",
    "float": "call to(torch.float32)",
    "cuda": "call to('cuda')",
    "cpu": "call to('cpu')",
    "eval": "a loaded pipeline is in evaluation mode",
    "encode_prompt": "call `embed_condition`",
    "numpy_to_pil": "frames are PIL images by default (output_type='pil')",
    "vae": "stage 1 is `pipe.autoencoder`",
    "text_encoder": "conditions are embedded by `pipe.condition`",
    "tokenizer": "conditions are embedded by `pipe.condition`",
    "load_config": "call from_pretrained, and read `config` of the result",
    "save_config": "call save_pretrained",
}
"""Arguments, options and attributes of diffusers' pipelines and models, with the reason why there is none here."""


def refuse_unknown(where: str, names: Iterable[str], allowed: Collection[str]) -> None:
    """Raise UserError for the first of `names` that is not allowed: its reason if it is known, otherwise what is allowed."""
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(allowed)}"
            raise UserError(f"{where} has no {name!r}: {UNSUPPORTED.get(name, hint)}")


class UnsupportedAttributeError(UserError, AttributeError):
    """An attribute that diffusers' pipelines have and ours do not; `hasattr` is false for it."""


def missing_attribute(owner: object, name: str) -> AttributeError:
    """Return the error for an attribute that an object does not have."""
    kind = type(owner).__name__
    if name in UNSUPPORTED:
        return UnsupportedAttributeError(f"{kind} has no {name!r}: {UNSUPPORTED[name]}")
    return AttributeError(f"{kind!r} object has no attribute {name!r}")
