"""Image-text pairs on the disk to micro-batches, the same on every machine and at every step.

`sources` lists the pairs, `scan` checks them into the table of `manifest`, `order` says which samples a step sees,
`images` and `cache` give their pixels or latents, and `batches` stacks the tensors.
"""
