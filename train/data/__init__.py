"""From image-text pairs on a disk to micro-batches, the same on every machine and at every step.

`scan.scan` lists and checks the pairs, `order.GlobalOrder` says which samples a step sees, `fill` computes what is
cached, and `batches.micro_batches` puts the tensors together.
"""
