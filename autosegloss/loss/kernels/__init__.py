"""The fast evaluators of a batch with hard labels: what `interpret.sums` gives with `RelaxedMaps`, to rounding.

- `moments_cpu`, `moments_triton`: sums that need no maps, planned by `autosegloss.loss.fuse`.
- `blocks`: all other sums, a few images and classes at a time; `bits` makes their truth maps.
- `curves`: the curves of both.
"""
