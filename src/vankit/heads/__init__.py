"""Heads over a VAN: detection, instance, semantic and panoptic segmentation.

Every network of this room has one interface, torchvision's: `network(images, targets)`.

- images: list of float32 (3, H, W), RGB, 0 to 1, of any sizes.
- targets: list of dict, for training. Instances (N of them, N may be 0): `boxes` (N, 4) float32 x1, y1, x2, y2 in
  pixels, `labels` (N,) int64 from 0, and `masks` (N, H, W) bool where the head predicts masks. Semantic: `semantic`
  (H, W) int64, 255 where unlabelled. Panoptic: `labels` and `masks` of all segments, things and stuff.
- in training mode it returns its losses, a dict of scalars; their sum is minimised.
- in eval mode it returns a dict per image, in that image's pixels. Detectors: `boxes`, `labels`, `scores` (N,) 0 to 1,
  best first, and `masks` (N, H, W) bool. Semantic: `logits` (classes, H, W). Panoptic: `segments` (H, W) int64, 0 for
  none, i + 1 for segment i; `labels` (S,), `scores` (S,).

Resizing, normalising and batching are part of the network.
"""
