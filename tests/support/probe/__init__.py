"""Nodes that only the host tests install: they write to files what passes through the host."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.v0_0_2 import ComfyExtension, io


class ProbeModel(io.ComfyNode):
    """Record every UNet call: the context at each cross-attention of the first block, rows and sigma."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeModel",
            category="tests",
            inputs=[io.Model.Input("model"), io.String.Input("path")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, path: str) -> io.NodeOutput:
        calls: list[dict] = []
        model = model.clone()

        def around_unet(executor, x, timesteps, context, *args, **kwargs):
            calls.append({"rows": x.shape[0], "contexts": [], "kwargs": sorted(kwargs)})
            if kwargs.get("crossattn_controlnet") is not None:
                calls[-1]["controlnet"] = kwargs["crossattn_controlnet"].cpu()
            output = executor(x, timesteps, context, *args, **kwargs)
            torch.save(calls, path)
            return output

        def at_cross_attention(n, context, value, extra_options):
            calls[-1]["contexts"].append(context.cpu().clone())
            calls[-1]["cond_or_uncond"] = list(extra_options["cond_or_uncond"])
            return n, context, value

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", around_unet)
        model.set_model_attn2_patch(at_cross_attention)
        return io.NodeOutput(model)


class ProbeConditioning(io.ComfyNode):
    """Write a conditioning to a file and pass it on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeConditioning",
            category="tests",
            inputs=[io.Conditioning.Input("conditioning"), io.String.Input("path")],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning, path: str) -> io.NodeOutput:
        saved = [
            (
                context.cpu(),
                {key: value for key, value in options.items() if isinstance(value, (torch.Tensor, float, int))},
            )
            for context, options in conditioning
        ]
        torch.save(saved, path)
        return io.NodeOutput(conditioning)


class ProbeNoise(io.ComfyNode):
    """Predict the noise in given latents, once for each side, and write it beside them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeNoise",
            category="tests",
            is_output_node=True,
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.String.Input("path"),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, model, positive, negative, path: str) -> io.NodeOutput:
        given = torch.load(path, weights_only=True)
        comfy.model_management.load_models_gpu([model])
        rows = []
        for latents, timestep, ((context, _),) in zip(
            given["latents"], given["timesteps"], (positive, negative), strict=True
        ):
            sigma = model.model.model_sampling.sigmas[int(timestep)]
            noisy = latents[None] * (1 + sigma**2).sqrt()
            denoised = model.model.apply_model(noisy, sigma.expand(1), c_crossattn=context)
            rows.append((noisy - denoised) / sigma)
        torch.save({"noise": torch.cat(rows), "context": positive[0][0]}, f"{path}.out")
        return io.NodeOutput()


class ProbeWideConditioning(io.ComfyNode):
    """A conditioning of SDXL's width."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeWideConditioning", category="tests", inputs=[], outputs=[io.Conditioning.Output()]
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput([[torch.zeros(1, 77, 2048), {"pooled_output": torch.zeros(1, 1280)}]])


class ProbeNothing(io.ComfyNode):
    """The CLIP output of a checkpoint without a text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="ProbeNothing", category="tests", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(None)


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ProbeModel, ProbeConditioning, ProbeNoise, ProbeWideConditioning, ProbeNothing]


async def comfy_entrypoint() -> ProbeExtension:
    return ProbeExtension()
