"""A complete small world to check text-to-image models in: scenes, their descriptions, and an exact judge of images.

Everything follows from a seed. It imports neither `train` nor `evaluation`, and both may use it.
"""
